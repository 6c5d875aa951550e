-- Videos that could not be judged, and why; the most tried first.
-- param limit = 200  how many videos
-- param status = "*"  only this status: timeout, decode_error, missing, ...
SELECT uri, status, error, attempts, run_id
FROM failures
WHERE status GLOB $status
ORDER BY attempts DESC, status, uri
LIMIT $limit;
