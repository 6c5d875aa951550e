-- Videos in which people blink far more or less often than in the rest of the archive.
-- param limit = 50  how many videos
-- param z = 3.5  how far out: robust z-score, as Iglewicz & Hoaglin 1993 set it
-- param min_seconds = 10  leave out videos with less face to watch than this
-- Distance from the median in units of its spread: 1.4826 times the median absolute deviation, or, where
-- more than half of the archive blinks alike, 1.2533 times the mean absolute deviation. Both equal the
-- standard deviation of a normal distribution, and neither is moved by the outliers that are sought.
WITH watched AS (
    SELECT uri, blink_rate, blink_count, face_seconds, verdict, score
    FROM videos
    WHERE blink_rate IS NOT NULL AND face_seconds >= $min_seconds
),
middle AS (
    SELECT *, abs(blink_rate - median(blink_rate) OVER ()) AS distance, median(blink_rate) OVER () AS archive_median
    FROM watched
),
spread AS (
    SELECT *, coalesce(nullif(1.4826 * median(distance) OVER (), 0), nullif(1.2533 * avg(distance) OVER (), 0)) AS unit
    FROM middle
)
SELECT
    uri, blink_rate, archive_median, round((blink_rate - archive_median) / unit, 2) AS z,
    blink_count, face_seconds, verdict, score
FROM spread
WHERE distance / unit >= $z
ORDER BY distance DESC, uri
LIMIT $limit;
