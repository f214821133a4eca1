//! Sequences whose output must match something: the mask is of the sequence's own tokens, whatever happens to it and whoever is
//! beside it. Not here: what a constraint is made of.

use std::thread;

use super::*;

/// Token `i` of the output leaves the remainder `i % 3`. A mask comes late, from another thread.
#[derive(Clone, Debug, Default)]
struct Rhythm {
    tokens: u32,
    /// Complete after so many tokens.
    length: Option<u32>,
    /// The mask after so many tokens cannot be found out.
    fails_after: Option<u32>,
}

impl OutputConstraint for Rhythm {
    fn mask(&mut self) -> Arc<TokenMask> {
        let mask = Arc::new(TokenMask::default());
        let (late, this) = (Arc::clone(&mask), self.clone());
        drop(thread::spawn(move || {
            thread::sleep(Duration::from_micros(200));
            let mut words = vec![0; 2];
            (0..VOCABULARY)
                .filter(|id| id % 3 == this.tokens % 3)
                .for_each(|id| words[id as usize / 32] |= 1 << (id % 32));
            late.fill((this.fails_after != Some(this.tokens)).then_some(words));
        }));
        mask
    }

    fn push(&mut self, id: u32) -> Result<OutputState, String> {
        if self.fails_after == Some(self.tokens) || id % 3 != self.tokens % 3 {
            return Err(format!("{id} after {} tokens", self.tokens));
        }
        self.tokens += 1;
        Ok(if self.length == Some(self.tokens) { OutputState::Complete } else { OutputState::Open })
    }
}

fn kept(request: &Request, rhythm: &Rhythm) -> Submission<FakeAdapter> {
    Submission { constraint: Some(Box::new(rhythm.clone())), ..request.submission() }
}

fn config(speculation: bool) -> EngineConfig {
    let draft_tokens_max = if speculation { 4 } else { 0 };
    EngineConfig { speculation: SpeculationConfig { draft_tokens_max, row_cost_percent: 0 }, ..EngineConfig::default() }
}

fn run_alone(request: &Request, rhythm: &Rhythm) -> (Vec<u32>, FinishReason, Usage) {
    let mut rig = Rig::new(FakeRunner::new(shape()).echoing(3), config(false));
    let mut stream = rig.handle.submit(kept(request, rhythm)).expect("accepted");
    rig.finish();
    read_finished(&mut stream)
}

fn requests() -> Vec<Request> {
    let one = |number: u32| Request {
        seed: (number % 2 == 1).then_some(number.into()),
        presence_penalty: if number % 3 == 2 { 0.5 } else { 0.0 },
        ..request((0..5 + number).map(|place| place * 7 % VOCABULARY), 20)
    };
    (0..8).map(one).collect()
}

#[test]
fn what_happens_to_a_sequence_changes_nothing_of_what_it_may_draw() {
    let rhythm = Rhythm::default();
    let alone: Vec<_> = requests().iter().map(|request| run_alone(request, &rhythm)).collect();
    assert!(alone.iter().all(|(tokens, ..)| (0..).zip(tokens).all(|(place, id): (u32, _)| id % 3 == place % 3)));
    let cramped = RunnerShape { kv_blocks: 12, ..shape() };
    for (how, shape, config) in [
        ("together", shape(), config(false)),
        ("guessing", shape(), config(true)),
        ("cramped", cramped, config(false)),
        ("cramped and guessing, in pieces", cramped, EngineConfig { step_rows_max: Some(5), ..config(true) }),
    ] {
        let mut rig = Rig::new(FakeRunner::new(shape).echoing(3), config);
        let free: Vec<_> = requests().iter().map(|request| rig.submit(request)).collect();
        let copies = requests().into_iter().map(|request| {
            let copies = (0..2).map(|_| kept(&request, &rhythm)).collect();
            rig.handle.submit_all(copies).expect("accepted")
        });
        let streams: Vec<_> = copies.collect();
        rig.finish();
        if how.contains("cramped") {
            assert!(rig.handle.stats().preemptions > 0, "{how}");
        }
        for (streams, alone) in streams.into_iter().zip(&alone) {
            for mut stream in streams {
                assert_eq!(read_finished(&mut stream), *alone, "{how}");
            }
        }
        for (mut stream, request) in free.into_iter().zip(requests()) {
            let mut unmixed = Rig::new(FakeRunner::new(shape).echoing(3), EngineConfig::default());
            assert_eq!(read_finished(&mut stream), unmixed.run(&request), "{how}, free");
        }
    }
}

#[test]
fn it_ends_when_nothing_is_left_to_come() {
    for request in requests() {
        let (whole, ..) = run_alone(&request, &Rhythm::default());
        for length in [1, 7, 20] {
            let (tokens, reason, usage) = run_alone(&request, &Rhythm { length: Some(length), ..Rhythm::default() });
            assert_eq!((&tokens[..], reason), (&whole[..length as usize], FinishReason::Stop));
            assert_eq!(usage.completion_tokens, length);
        }
        // The budget is reached before.
        let (tokens, reason, _) = run_alone(&request, &Rhythm { length: Some(21), ..Rhythm::default() });
        assert_eq!((tokens, reason), (whole, FinishReason::Length));
    }
}

#[test]
fn one_that_goes_on_later_knows_what_came_before() {
    for request in requests() {
        let (whole, ..) = run_alone(&request, &Rhythm::default());
        for generated in [1, 5, 19] {
            let (head, tail) = whole.split_at(generated);
            let prompt: Vec<u32> = request.prompt.iter().chain(head).copied().collect();
            let later = Request { prompt, ..request.clone() };
            let rhythm = Rhythm { tokens: generated as u32, ..Rhythm::default() };
            let mut submission = kept(&later, &rhythm);
            submission.continues = Continuation { generated_tokens: generated as u32, ..Continuation::default() };
            let mut rig = Rig::new(FakeRunner::new(shape()).echoing(3), config(false));
            let mut stream = rig.handle.submit(submission).expect("accepted");
            rig.finish();
            assert_eq!(read_finished(&mut stream).0, tail);
        }
    }
}

#[test]
fn a_mask_that_cannot_be_found_out_ends_its_sequence_and_no_other() {
    let asked = requests();
    let (first, others) = asked.split_first().expect("some");
    let (whole, ..) = run_alone(first, &Rhythm::default());
    let mut rig = Rig::new(FakeRunner::new(shape()).echoing(3), config(true));
    let rhythm = Rhythm { fails_after: Some(4), ..Rhythm::default() };
    let mut failing = rig.handle.submit(kept(first, &rhythm)).expect("accepted");
    let streams: Vec<_> = others.iter().map(|one| rig.handle.submit(kept(one, &Rhythm::default())).unwrap()).collect();
    rig.finish();
    let (tokens, last) = read(&mut failing);
    assert_eq!(tokens, whole[..4]);
    match last {
        Some(TokenEvent::Failed(error)) => {
            assert_eq!((error.code(), error.blame()), ("constraint_failed", types::Blame::Caller));
        }
        other => panic!("not failed: {other:?}"),
    }
    for (mut stream, request) in streams.into_iter().zip(others) {
        assert_eq!(read_finished(&mut stream), run_alone(request, &Rhythm::default()));
    }
}
