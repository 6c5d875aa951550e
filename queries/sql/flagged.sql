-- Videos to look at first: judged fake, or with flagged clips, the most suspicious on top.
-- param limit = 50  how many videos
-- param min_score = 0.0  only those that reach this score
-- needs verdicts
SELECT uri, verdict, score, top_clip_score, flagged_clips, top_t, status
FROM internal.rated
WHERE (verdict = 'fake' OR flagged_clips > 0)
    AND model IS DISTINCT FROM 'untrained'
    AND coalesce(score, top_clip_score) >= $min_score  -- a video that failed in part has no score of its own
ORDER BY coalesce(score, top_clip_score) DESC, uri
LIMIT $limit;
