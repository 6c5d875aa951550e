-- How the archive stands: videos, hours and findings by status, and in all.
-- needs verdicts
SELECT
    coalesce(status, 'all') AS status,
    count(*) AS videos,
    round(coalesce(sum(duration_s), 0) / 3600, 3) AS hours,
    round(coalesce(sum(lost_seconds), 0), 1) AS lost_seconds,
    count(*) FILTER ((verdict = 'fake' OR flagged_clips > 0) AND model IS DISTINCT FROM 'untrained') AS flagged,
    count(*) FILTER (verdict = 'fake') AS fake,
    count(*) FILTER (verdict = 'uncertain') AS uncertain,
    count(*) FILTER (verdict = 'real') AS real,
    count(*) FILTER (pending_spans > 0) AS unfinished
FROM videos
GROUP BY GROUPING SETS ((status), ())
ORDER BY grouping(status), videos DESC, status;
