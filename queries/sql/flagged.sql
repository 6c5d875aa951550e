-- Videos to look at first: judged fake, or with flagged clips, the most suspicious on top.
-- param limit = 50  how many videos
-- param min_score = 0.0  only those that reach this score
-- needs verdicts
SELECT v.uri, v.verdict, v.score, c.top_score AS top_clip_score, v.flagged_clips, v.top_t, v.status
FROM videos AS v
LEFT JOIN (SELECT uri, max(score) AS top_score FROM clips WHERE flagged GROUP BY uri) AS c USING (uri)
WHERE (v.verdict = 'fake' OR v.flagged_clips > 0)
    AND v.model IS DISTINCT FROM 'untrained'
    AND coalesce(v.score, c.top_score) >= $min_score  -- a video that failed in part has no score of its own
ORDER BY coalesce(v.score, c.top_score) DESC, v.uri
LIMIT $limit;
