-- The views that everything else asks. Run once per connection by queries/catalog.py, which provides
--   internal.parts      every row of spans/*/part-*.parquet, plus filename and file_row_number
--   internal.run_files  (filename, document): the text of each runs/*.json
--   internal.review_parts  every row of reviews/part-*.parquet
-- Times are seconds of the video, boxes fractions of the frame, rates per minute, moments of the day UTC.

-- Which status a video gets when its spans differ: a failed one before the others (the most frequent, then
-- the lowest rank), else the lowest rank. `failed` says what scanner/results.py calls FAILED.
CREATE TABLE internal.statuses AS
FROM (VALUES
    ('model_error', true, 1),   -- ours to mend: hides the verdict of a video that was read well
    ('crashed', true, 2),
    ('timeout', true, 3),
    ('too_large', true, 4),
    ('decode_error', true, 5),
    ('missing', true, 6),
    ('unsupported', true, 7),
    ('ok', false, 8),
    ('too_short', false, 9),
    ('no_face', false, 10)
) AS t (status, failed, rank);

-- The key columns of every row, read once: what the rows below are chosen by.
CREATE TABLE internal.keys AS
SELECT
    schema_version, filename, file_row_number, run_id, scanned_at, uri, content_tag, model_digest, settings_digest,
    span_index, span_count, p.status, error, coalesce(s.failed, true) AS failed, coalesce(s.rank, 0) AS rank
FROM internal.parts AS p
LEFT JOIN internal.statuses AS s ON s.status = p.status;

-- Exactly once. The latest row of a video says which version of it counts (file, model, settings): rows of
-- other versions are superseded, and of those that remain the latest of each span is kept. So a changed file
-- replaces what was known of it, an interrupted run and the one that resumed it complete each other, and a
-- span that was written twice shows once.
CREATE TABLE internal.kept AS
WITH latest AS (
    SELECT uri, content_tag, model_digest, settings_digest, span_count
    FROM internal.keys
    QUALIFY row_number() OVER (
        PARTITION BY uri ORDER BY run_id DESC, scanned_at DESC, filename DESC, file_row_number DESC
    ) = 1
)
SELECT k.*
FROM internal.keys AS k
JOIN latest AS l
    ON k.uri = l.uri
    AND k.content_tag IS NOT DISTINCT FROM l.content_tag
    AND k.model_digest IS NOT DISTINCT FROM l.model_digest
    AND k.settings_digest IS NOT DISTINCT FROM l.settings_digest
    AND k.span_count IS NOT DISTINCT FROM l.span_count
QUALIFY row_number() OVER (
    PARTITION BY k.uri, k.span_index
    ORDER BY k.run_id DESC, k.scanned_at DESC, k.filename DESC, k.file_row_number DESC
) = 1;

-- How each video ended. Needs no Parquet: `failures` answers from memory.
CREATE VIEW internal.endings AS
WITH by_status AS (
    SELECT
        uri, status, failed, rank,
        count(*) AS spans,
        arg_min(error, span_index) AS error,
        any_value(content_tag) AS content_tag,
        any_value(span_count) AS span_count,
        max(run_id) AS run_id,
        max(scanned_at) AS scanned_at
    FROM internal.kept
    GROUP BY uri, status, failed, rank
),
ending AS (
    SELECT
        *,
        sum(spans) OVER video AS present,
        coalesce(sum(spans) FILTER (failed) OVER video, 0) AS failed_spans,
        max(run_id) OVER video AS last_run_id,
        max(scanned_at) OVER video AS last_scanned_at
    FROM by_status
    WINDOW video AS (PARTITION BY uri)
    QUALIFY row_number() OVER (
        PARTITION BY uri ORDER BY failed DESC, CASE WHEN failed THEN spans END DESC, rank, status
    ) = 1
)
SELECT
    uri, content_tag, status, failed,
    CASE
        WHEN failed AND failed_spans < span_count
            THEN concat_ws(' ', error, concat('(', failed_spans, ' of ', span_count, ' spans)'))
        ELSE error
    END AS error,
    greatest(span_count - present, 0)::INTEGER AS pending_spans,
    last_run_id AS run_id,
    last_scanned_at::TIMESTAMP AS scanned_at
FROM ending;

-- One row per span, each once: all that was written, for experts.
CREATE VIEW spans AS
SELECT p.* EXCLUDE (filename, file_row_number) REPLACE (p.scanned_at::TIMESTAMP AS scanned_at)
FROM internal.parts AS p
SEMI JOIN internal.kept AS k
    ON p.filename = k.filename
    AND p.file_row_number = k.file_row_number
    AND p.uri = k.uri
    AND p.span_index = k.span_index
    AND p.run_id = k.run_id
    AND p.scanned_at IS NOT DISTINCT FROM k.scanned_at;

-- Mean of value, each row counting for as long as it lasts; rows without a value do not count.
CREATE MACRO internal.weighted_mean(value, seconds) AS
    round(sum(value * seconds) / nullif(sum(seconds) FILTER (value IS NOT NULL), 0), 6);

-- What `videos` shows, and what the query `flagged` wants besides: reading clips twice would take twice the time.
CREATE VIEW internal.rated AS
WITH measured AS (
    SELECT
        uri,
        arg_min(size_bytes, span_index) AS size_bytes,
        arg_min(duration_s, span_index) AS duration_s,
        arg_min(width, span_index) AS width,
        arg_min(height, span_index) AS height,
        arg_min(fps, span_index) AS fps,
        arg_min(codec, span_index) AS codec,
        string_agg(DISTINCT decoder, ', ' ORDER BY decoder) AS decoder,
        -- Structs compare field by field: the highest score, and of equal ones the earliest.
        min({descending: -score, span_index: span_index, score: score, verdict: verdict, cnn_score: cnn_score})
            FILTER (status = 'ok' AND score IS NOT NULL) AS top,
        sum(blink_count) FILTER (blink_s > 0)::INTEGER AS blink_count,
        round(60 * sum(blink_count) FILTER (blink_s > 0) / sum(blink_s) FILTER (blink_count IS NOT NULL), 6)
            AS blink_rate,
        internal.weighted_mean(blink_score, blink_s) AS blink_score,
        internal.weighted_mean(micro_irregularity, face_s) AS micro_irregularity,
        max(n_faces) AS n_faces,
        round(sum(face_s), 6) AS face_seconds,
        round(sum(analyzed_s), 6) AS analyzed_seconds,
        round(sum(lost_s), 6) AS lost_seconds,
        round(sum(worker_s), 6) AS worker_seconds,
        coalesce(sum(len([c FOR c IN clips IF c.flagged])), 0)::INTEGER AS flagged_clips,
        min(list_min([{descending: -c.score, t_start: c.t_start} FOR c IN clips IF c.score IS NOT NULL])).t_start
            AS top_t,
        max(list_max([c.score FOR c IN clips IF c.flagged])) AS top_clip_score,
        arg_min(threshold, span_index) AS threshold,
        arg_min(model, span_index) AS model,
        arg_min(model_digest, span_index) AS model_digest
    FROM main.spans  -- for a catalog that is attached under another name
    GROUP BY uri
)
SELECT
    uri, e.content_tag, m.size_bytes, m.duration_s, m.width, m.height, m.fps, m.codec, m.decoder,
    e.status, e.error,
    CASE WHEN e.status = 'ok' THEN m.top.verdict END AS verdict,
    CASE WHEN e.status = 'ok' THEN m.top.score END AS score,
    CASE WHEN e.status = 'ok' THEN m.top.cnn_score END AS cnn_score,
    m.blink_count, m.blink_rate,
    CASE WHEN e.status = 'ok' THEN m.blink_score END AS blink_score,
    m.micro_irregularity, m.n_faces, m.face_seconds, m.analyzed_seconds, m.lost_seconds, m.worker_seconds,
    m.flagged_clips, m.top_t, e.pending_spans, m.threshold, m.model, m.model_digest, e.run_id, e.scanned_at,
    m.top_clip_score
FROM internal.endings AS e
JOIN measured AS m USING (uri);

-- One row per video. score is the highest of its spans, the most suspicious stretch; verdict and cnn_score
-- are that span's. Scores are NULL unless status is ok: a part of a video does not speak for the whole.
-- Sums are rounded to 1e-6: threads add in any order, and two answers must be equal.
CREATE VIEW videos AS
FROM internal.rated SELECT * EXCLUDE (top_clip_score);

-- One row per clip: T consecutive face crops of one track, what the network scores.
CREATE VIEW clips AS
SELECT
    uri, c.face_id, c.t_start, c.t_end, c.score, c.cnn_score, coalesce(c.flagged, false) AS flagged,
    c.x, c.y, c.w, c.h, run_id
FROM (SELECT uri, run_id, unnest(clips) AS c FROM spans);

-- One row per scored frame of a face.
CREATE VIEW frames AS
SELECT uri, f.face_id, f.t, f.score, f.ear, f.blink, f.x, f.y, f.w, f.h, run_id
FROM (SELECT uri, run_id, unnest(frames) AS f FROM spans);

-- One row per face track: one face followed through a span.
CREATE VIEW faces AS
SELECT
    uri, f.face_id, f.t_start, f.t_end, f.face_s AS face_seconds, f.score, f.cnn_score,
    f.blink_count, f.blink_rate, f.blink_score, f.blink_s AS blink_seconds,
    f.blink_t AS blink_times, f.blink_d AS blink_durations, f.micro_irregularity,
    f.x, f.y, f.w, f.h, run_id
FROM (SELECT uri, run_id, unnest(faces) AS f FROM spans);

-- One row per sampled moment of a face track: the curves behind blinks and motion.
CREATE VIEW signals AS
SELECT uri, face_id, s.t, s.ear, s.ear_left, s.ear_right, s.motion, s.yaw, s.pitch, s.roll, run_id
FROM (
    SELECT uri, run_id, f.face_id, unnest(f.signals) AS s
    FROM (SELECT uri, run_id, unnest(faces) AS f FROM spans)
);

-- One row per kept picture: the face, and the same with the network's attention laid over it. Both are JPEG.
CREATE VIEW thumbnails AS
SELECT uri, p.face_id, p.t, p.score, p.image, p.heatmap, run_id
FROM (SELECT uri, run_id, unnest(thumbnails) AS p FROM spans);

-- One row per video that could not be judged. attempts: runs in which this version of the file failed.
CREATE VIEW failures AS
SELECT e.uri, e.status, e.error, a.attempts, e.run_id
FROM internal.endings AS e
JOIN (
    SELECT uri, content_tag, count(DISTINCT run_id) AS attempts
    FROM internal.keys
    WHERE failed
    GROUP BY uri, content_tag
) AS a ON a.uri = e.uri AND a.content_tag IS NOT DISTINCT FROM e.content_tag
WHERE e.failed;

-- One row per scan. settings, counts and versions are JSON: settings ->> 'fps' takes one of them.
CREATE VIEW runs AS
SELECT
    document ->> 'run_id' AS run_id,
    (document ->> 'started_at')::TIMESTAMPTZ::TIMESTAMP AS started_at,
    (document ->> 'finished_at')::TIMESTAMPTZ::TIMESTAMP AS finished_at,  -- NULL while it runs
    (document ->> 'interrupted')::BOOLEAN AS interrupted,
    document ->> 'model' AS model,
    document ->> 'model_digest' AS model_digest,
    (document ->> 'videos')::BIGINT AS videos,
    (document ->> 'spans')::BIGINT AS spans,
    (document ->> 'video_hours')::DOUBLE AS video_hours,
    (document ->> 'video_hours_per_hour')::DOUBLE AS video_hours_per_hour,
    document -> 'settings' AS settings,
    document -> 'counts' AS counts,
    document -> 'versions' AS versions
FROM (SELECT TRY_CAST(document AS JSON) AS document FROM internal.run_files)
WHERE document IS NOT NULL;

-- One row per review of a clip: what somebody said of it. Several reviews of one clip are kept, each as it was.
-- DISTINCT, because while parts are merged a review is in two of them.
CREATE VIEW reviews AS
SELECT DISTINCT
    uri, face_id, t_start, t_end, label, note, reviewer, reviewed_at::TIMESTAMP AS reviewed_at,
    content_tag  -- of the version of the video that was looked at
FROM internal.review_parts;

-- The review of a clip that counts: the latest, whoever it is from.
CREATE VIEW internal.latest_reviews AS
FROM reviews
QUALIFY row_number() OVER (
    PARTITION BY uri, content_tag, face_id, t_start, t_end ORDER BY reviewed_at DESC, reviewer, label, note
) = 1;
