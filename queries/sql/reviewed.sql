-- Flagged clips with the latest review of each; label is NULL where nobody has looked yet.
-- param limit = 200  how many clips
-- param uri = "*"  only videos whose URI matches this pattern (* is anything)
-- param label = "*"  only this label: confirmed, false_alarm, unsure, or "" for clips without a review
-- needs verdicts
SELECT
    c.uri, c.t_start, c.t_end, c.face_id, c.score, c.flagged, r.label, r.note, r.reviewer, r.reviewed_at,
    v.content_tag
FROM clips AS c
JOIN videos AS v USING (uri)
LEFT JOIN internal.latest_reviews AS r
    ON r.uri = c.uri AND r.content_tag IS NOT DISTINCT FROM v.content_tag
    AND r.face_id = c.face_id AND r.t_start = c.t_start AND r.t_end = c.t_end
WHERE c.flagged AND v.model IS DISTINCT FROM 'untrained' AND c.uri GLOB $uri AND coalesce(r.label, '') GLOB $label
ORDER BY c.score DESC, c.uri, c.t_start, c.face_id
LIMIT $limit;
