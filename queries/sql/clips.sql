-- Flagged clips: which second of which video, which face, and where in the frame.
-- param limit = 50  how many clips
-- param uri = "*"  only videos whose URI matches this pattern (* is anything)
-- needs verdicts
SELECT c.uri, c.t_start, c.t_end, c.face_id, c.score, c.cnn_score, c.flagged, c.x, c.y, c.w, c.h
FROM clips AS c
JOIN videos AS v USING (uri)
WHERE c.flagged AND v.model IS DISTINCT FROM 'untrained' AND c.uri GLOB $uri
ORDER BY c.score DESC, c.uri, c.t_start, c.face_id
LIMIT $limit;
