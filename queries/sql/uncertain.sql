-- Videos in the band where the score decides nothing: for a person to judge, the most suspicious first.
-- param limit = 50  how many videos
-- needs verdicts
SELECT uri, score, cnn_score, blink_score, micro_irregularity, top_t, n_faces, duration_s
FROM videos
WHERE verdict = 'uncertain' AND model IS DISTINCT FROM 'untrained'
ORDER BY score DESC, uri
LIMIT $limit;
