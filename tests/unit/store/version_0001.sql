-- Rows as rankwise wrote them with schema version 0001: a study with a finished trial and a queued one.
INSERT INTO study VALUES (1, '01K5ZJ9V0M3Q8R7T6Y2X4W1N0A', '{"model":"models/tiny","dataset":"reviews.csv"}',
  'running', 0, NULL, NULL, 12.5, 0.0, 2, '2026-01-01 10:00:00', '2026-01-01 10:01:00');
INSERT INTO trial VALUES (1, '01K5ZJ9V0M3Q8R7T6Y2X4W1N0B', 1, 1, 'c1', 'probe', 0, 0,
  '{"candidate":{"adapter":{"method":"lora","rank":8,"alpha":16.0,"targets":["q","v"]},"level":{},"recipe":{"max_length":128},"micro_batch":4,"learning_rate":0.0001},"rung":"probe"}',
  'finished', 2, 'ok', NULL, '{"tokens_per_s":100.0,"measured_s":5.0}', 'done',
  '2026-01-01 10:00:10', '2026-01-01 10:00:20', 9.5);
INSERT INTO trial VALUES (2, '01K5ZJ9V0M3Q8R7T6Y2X4W1N0C', 1, 2, 'c2', 'probe', 0, 0,
  '{"candidate":{"adapter":{"method":"ia3","targets":["k","v"]},"level":{},"recipe":{"max_length":128},"micro_batch":4,"learning_rate":0.0001},"rung":"probe"}',
  'queued', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempt VALUES (5, 1, 1, 'host:1', 'boot', 100.0, '2026-01-01 10:00:05', '2026-01-01 10:00:08', 'lost', 'killed');
INSERT INTO attempt VALUES (6, 1, 2, 'host:1', 'boot', 150.0, '2026-01-01 10:00:10', '2026-01-01 10:00:20', 'ok', NULL);
INSERT INTO event VALUES (1, 1, 'study.created', '{}', '2026-01-01 10:00:00');
INSERT INTO event VALUES (1, 2, 'trial.planned', '{}', '2026-01-01 10:00:01');
