//! What the runner is given: order, segments, draws.

use std::sync::Mutex;

use super::*;

/// Keeps what the fake runner was given.
pub(super) struct Recorder {
    fake: FakeRunner,
    batches: Arc<Mutex<Vec<Batch>>>,
}

impl ModelRunner for Recorder {
    type Adapter = FakeAdapter;

    fn shape(&self) -> RunnerShape {
        self.fake.shape()
    }

    fn fingerprint(&self) -> Digest {
        self.fake.fingerprint()
    }

    fn separates_prompts(&self) -> bool {
        self.fake.separates_prompts()
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<FakeAdapter>, blocks: &[u32]) -> Result<(), RunnerError> {
        self.fake.load_adapter(slot, adapter, blocks)
    }

    fn unload_adapter(&mut self, slot: Slot) {
        self.fake.unload_adapter(slot);
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.batches.lock().expect("not poisoned").push(batch.clone());
        self.fake.step(batch, sampled)
    }
}

/// A rig, and the batches that its runner is given.
pub(super) fn recorded(fake: FakeRunner, config: EngineConfig) -> (Rig<Recorder>, Arc<Mutex<Vec<Batch>>>) {
    let batches = Arc::default();
    let recorder = Recorder { fake, batches: Arc::clone(&batches) };
    (Rig::new(recorder, config), batches)
}

fn batches_of(shape: RunnerShape, requests: &[Request]) -> Vec<Batch> {
    let (mut rig, batches) = recorded(FakeRunner::new(shape), EngineConfig::default());
    let _streams: Vec<_> = requests.iter().map(|request| rig.handle.submit(request.submission())).collect();
    rig.finish();
    batches.lock().expect("not poisoned").clone()
}

#[test]
fn equal_compositions_are_neighbours_and_segments_are_maximal() {
    let mut names = ["a0", "a1"];
    names.sort_by_key(|name| Digest::of(name.as_bytes()));
    let [one, two] = names;
    let requests = [
        request([1, 2], 1).with([(two, 1.0), (one, 1.0)]),
        request([3], 1),
        request([4, 5], 1).with([(one, 1.0)]),
        request([6], 1).with([(one, 1.0), (two, 1.0)]),
        request([7], 1).with([(one, 0.5)]),
    ];
    let batches = batches_of(shape(), &requests);
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    // 0.5 sorts before 1.0, the shorter composition before the longer one.
    assert_eq!(batch.tokens, [3, 7, 4, 5, 1, 2, 6]);
    assert_eq!(batch.positions, [0, 0, 0, 1, 0, 1, 0]);
    let segments: Vec<_> = batch.segments.iter().map(|s| (s.rows.clone(), s.slot.0, s.weight)).collect();
    // The first request to run took its parts in canonical order: slot 0 holds `one`.
    assert_eq!(segments, [(1..2, 0, 0.5), (2..7, 0, 1.0), (4..7, 1, 1.0)]);
    assert_eq!(batch.samples.iter().map(|sample| sample.row).collect::<Vec<_>>(), [0, 1, 3, 5, 6]);
}

#[test]
fn rows_before_an_adapter_begins_lie_in_none_of_its_segments() {
    let mut names = ["a0", "a1"];
    names.sort_by_key(|name| Digest::of(name.as_bytes()));
    let [one, two] = names;
    let requests = [
        request(0..6, 3).with([(one, 1.0), (two, 1.0)]).begins_at(one, Some(4)),
        request(10..13, 3).with([(one, 1.0), (two, 1.0)]).begins_at(two, None),
        request(20..23, 3).with([(one, 1.0), (two, 1.0)]).begins_at(one, Some(4)).begins_at(two, Some(2)),
    ];
    // Its prompt in two pieces.
    let small = RunnerShape { batch_rows_max: 5, ..shape() };
    let batches = batches_of(small, &requests[..1]);
    let segments = |batch: &Batch| {
        let place = |s: &LoraSegment| (s.rows.clone(), s.slot.0);
        (batch.positions.clone(), batch.segments.iter().map(place).collect::<Vec<_>>())
    };
    assert_eq!(segments(&batches[0]), (vec![0, 1, 2, 3, 4], vec![(4..5, 0), (0..5, 1)]));
    assert_eq!(segments(&batches[1]), (vec![5], vec![(0..1, 0), (0..1, 1)]));

    let batches = batches_of(shape(), &requests);
    // The second, which is `one` alone, comes first; then the first and the third, as they came.
    assert_eq!(batches[0].tokens, [10, 11, 12, 0, 1, 2, 3, 4, 5, 20, 21, 22]);
    let (_, first) = segments(&batches[0]);
    assert_eq!(first, [(0..3, 0), (7..9, 0), (3..9, 1), (11..12, 1)]);
    // The third's `one` begins at its second generated token.
    assert_eq!(segments(&batches[1]), (vec![3, 6, 3], vec![(0..2, 0), (1..3, 1)]));
    assert_eq!(segments(&batches[2]), (vec![4, 7, 4], vec![(0..3, 0), (1..3, 1)]));
}

#[test]
fn only_the_row_that_completes_the_prompt_is_sampled() {
    let small = RunnerShape { batch_rows_max: 4, ..shape() };
    let batches = batches_of(small, &[request(0..10, 2)]);
    let shapes: Vec<_> = batches.iter().map(|b| (b.tokens.len(), b.block_tables.len(), b.samples.len())).collect();
    assert_eq!(shapes, [(4, 1, 0), (4, 2, 0), (2, 3, 1), (1, 3, 1)]);
    let steps: Vec<_> = batches.iter().flat_map(|b| &b.samples).map(|s| (s.row, s.step)).collect();
    assert_eq!(steps, [(1, 0), (0, 1)]);
}

#[test]
fn penalties_fall_on_the_tokens_that_the_sequence_has_wherever_it_was_interrupted() {
    // Room for one and a half of them: they preempt each other.
    let small = RunnerShape { kv_blocks: 9, batch_rows_max: 6, ..shape() };
    let requests = [
        request([3, 3, 4], 20).penalised(1.5, 0.0),
        request([5, 6], 20).penalised(1.0, 0.5),
        request([7], 20),
        request([8, 9, 9], 20).penalised(1.2, -0.5),
    ];
    let batches = batches_of(small, &requests);
    let mut checked = 0;
    for batch in &batches {
        for sample in &batch.samples {
            let asked = (sample.repetition_penalty, sample.presence_penalty);
            let found = requests.iter().find(|one| (one.repetition_penalty, one.presence_penalty) == asked);
            let request = found.expect("a sample is of a request");
            let output: Vec<u32> = request.expected(&small, &[]).0.into_iter().take(sample.step as usize).collect();
            let mut counted: Vec<SeenToken> = Vec::new();
            let of_prompt = request.prompt.iter().filter(|_| request.repetition_penalty != 1.0);
            let has_penalty = request.repetition_penalty != 1.0 || request.presence_penalty != 0.0;
            for (id, times) in
                of_prompt.map(|id| (*id, 0)).chain(output.iter().filter(|_| has_penalty).map(|id| (*id, 1)))
            {
                match counted.iter_mut().find(|token| token.id == id) {
                    Some(token) => token.output_count += times,
                    None => counted.push(SeenToken { id, output_count: times }),
                }
            }
            assert_eq!(batch.seen_of(sample), Some(&counted[..]), "step {} of {request:?}", sample.step);
            checked += 1;
        }
    }
    assert_eq!(checked, 80);
    let rows: usize = batches.iter().map(|batch| batch.tokens.len()).sum();
    assert!(rows > 9 + 80, "some were interrupted and computed again");
}

#[test]
fn a_batch_that_breaks_a_rule_is_found() {
    let good = batches_of(shape(), &[request([1, 2, 3, 4, 5], 1).with([("a0", 1.0)]), request([6], 1)]).remove(0);
    good.check(&shape()).expect("the engine's own");
    let breaks: [fn(&mut Batch); 13] = [
        |b| b.tokens[0] = VOCABULARY,
        |b| b.positions[1] = 7,
        |b| b.block_tables[0] = 64,
        |b| b.sequences[0].blocks.end -= 1,
        |b| b.sequences[1].rows.end += 1,
        |b| b.sequences.truncate(1),
        |b| b.segments[0].rows.end = 99,
        |b| b.segments[0].slot = Slot(4),
        |b| b.samples.reverse(),
        |b| b.samples[1].row = 6,
        |b| b.samples[0].seen = 0..1,
        |b| b.samples[0].biases = 0..1,
        |b| {
            b.logit_biases = vec![(VOCABULARY, 1.0)];
            b.samples[0].biases = 0..1;
        },
    ];
    for (index, change) in breaks.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(bad.check(&shape()).is_err(), "rule {index}");
    }
}
