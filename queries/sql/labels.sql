-- Reviews as labels for `deepsweep prepare`: a manifest of the videos below root, to be saved in root as .csv.
-- param root = "/"  the folder or s3:// prefix that the manifest will name files of
-- A video is fake if a clip of it was confirmed. It is real if all its flagged clips were false alarms: one
-- that nobody looked at, or somebody was unsure of, leaves it out. The latest review of a clip counts.
WITH said AS (
    SELECT v.uri, r.label, c.flagged
    FROM videos AS v
    JOIN clips AS c USING (uri)
    LEFT JOIN internal.latest_reviews AS r
        ON r.uri = c.uri AND r.content_tag IS NOT DISTINCT FROM v.content_tag
        AND r.face_id = c.face_id AND r.t_start = c.t_start AND r.t_end = c.t_end
    WHERE r.label IS NOT NULL OR c.flagged
),
judged AS (
    SELECT
        uri,
        bool_or(label = 'confirmed') IS TRUE AS fake,
        bool_and(label IS NOT DISTINCT FROM 'false_alarm') AS real
    FROM said
    GROUP BY uri
)
SELECT substr(uri, length(rtrim($root, '/')) + 2) AS file, CASE WHEN fake THEN 'fake' ELSE 'real' END AS label
FROM judged
WHERE (fake OR real) AND starts_with(uri, rtrim($root, '/') || '/')
ORDER BY file;
