-- Videos, hours, flagged and failed of each folder: the URI up to the last slash. The worst first.
-- param limit = 200  how many folders
-- needs verdicts
SELECT
    CASE WHEN contains(v.uri, '/') THEN regexp_replace(v.uri, '/[^/]*$', '/') ELSE '' END AS folder,
    count(*) AS videos,
    round(coalesce(sum(v.duration_s), 0) / 3600, 3) AS hours,
    count(*) FILTER (
        (v.verdict = 'fake' OR v.flagged_clips > 0) AND v.model IS DISTINCT FROM 'untrained'
    ) AS flagged,
    count(f.uri) AS failed
FROM videos AS v
LEFT JOIN failures AS f USING (uri)
GROUP BY folder
ORDER BY flagged DESC, failed DESC, folder
LIMIT $limit;
