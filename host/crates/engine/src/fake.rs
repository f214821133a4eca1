//! A runner without a model, for tests of the scheduler and of everything above it. Its next token is a hash of all KV
//! that the sequence can read and of the composition under which each row was computed, so that a wrong block, a wrong
//! segment or a lost row shows as a wrong token; and it refuses batches that break a rule.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use types::{CompositionPart, Digest};

use crate::{
    Batch, BatchSequence, ModelRunner, RunnerError, RunnerShape, SampleRequest, SampledToken, Slot, TokenMask,
    is_allowed,
};

/// An adapter that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeAdapter {
    /// What it is.
    pub value: u64,
    /// Whether the runner refuses it.
    pub broken: bool,
}

/// The token and its surroundings, as KV.
#[derive(Clone, Copy, Debug)]
struct Entry {
    position: u32,
    token: u32,
    content: u64,
}

/// An adapter in a slot.
#[derive(Clone, Debug)]
struct Loaded {
    value: u64,
    blocks: Vec<u32>,
}

/// The position of what an adapter has in the KV memory: none has one.
const OF_ADAPTER: u32 = u32::MAX;

/// What the KV of drawn tokens has beside that of asked ones.
const DRAWN: u64 = 0x64_7261_776e;

/// A deterministic [`ModelRunner`].
#[derive(Clone, Debug)]
pub struct FakeRunner {
    shape: RunnerShape,
    /// `[kv_blocks * block_tokens]`
    kv: Vec<Option<Entry>>,
    slots: Vec<Option<Loaded>>,
    adapter_blocks_max: u32,
    overlaps: bool,
    separates_prompts: bool,
    /// Steps that were submitted and not collected: what they were given, and what came of them.
    under_way: VecDeque<(Batch, Result<Vec<SampledToken>, Fault>)>,
    /// What the last step drew, or why it did not.
    last: Result<Vec<u32>, String>,
    steps: u64,
    failing: BTreeSet<u64>,
    losing: Option<u64>,
    /// Whether whoever asks was told.
    is_lost: bool,
    panicking: Option<u64>,
    echo: Option<u32>,
}

impl FakeRunner {
    /// A runner of these sizes with empty memory.
    #[must_use]
    pub fn new(shape: RunnerShape) -> Self {
        let kv = vec![None; shape.kv_blocks as usize * shape.block_tokens as usize];
        let slots = vec![None; shape.adapter_slots as usize];
        Self {
            shape,
            kv,
            slots,
            adapter_blocks_max: 0,
            overlaps: false,
            separates_prompts: false,
            under_way: VecDeque::new(),
            last: Ok(Vec::new()),
            steps: 0,
            failing: BTreeSet::new(),
            losing: None,
            is_lost: false,
            panicking: None,
            echo: None,
        }
    }

    /// Keeps adapters in KV blocks: up to this many of each, by its value.
    #[must_use]
    pub fn with_adapters_in_blocks(self, blocks_max: u32) -> Self {
        Self { adapter_blocks_max: blocks_max, ..self }
    }

    /// Takes a step while the one before it is under way, and does not show what it drew before it is asked: as a device
    /// whose work is in the order of the calls.
    #[must_use]
    pub fn overlapping(self) -> Self {
        Self { overlaps: true, ..self }
    }

    /// Computes drawn tokens in another way than asked ones, so that KV of the wrong kind shows as a wrong token.
    #[must_use]
    pub fn separating(self) -> Self {
        Self { separates_prompts: true, ..self }
    }

    /// Fails these steps, counted from 0, before anything of them is done.
    #[must_use]
    pub fn failing_at(self, steps: impl IntoIterator<Item = u64>) -> Self {
        Self { failing: steps.into_iter().collect(), ..self }
    }

    /// Loses its device in this step, counted from 0. To be asked for anything after that is a panic.
    #[must_use]
    pub fn losing_at(self, step: u64) -> Self {
        Self { losing: Some(step), ..self }
    }

    /// Panics in this step, counted from 0.
    #[must_use]
    pub fn panicking_at(self, step: u64) -> Self {
        Self { panicking: Some(step), ..self }
    }

    /// Mostly repeats what it generated this many tokens ago, at least 1, as models do that quote: something to guess.
    #[must_use]
    pub fn echoing(self, tokens: u32) -> Self {
        Self { echo: Some(tokens.max(1)), ..self }
    }

    fn is_there(&self) {
        assert!(!self.is_lost, "asked after its device was lost");
    }

    /// What the row is computed under: the segments over it, in their order.
    fn composition_at(&self, batch: &Batch, row: u32) -> Result<u64, RunnerError> {
        let mut composition = 0;
        for segment in batch.segments.iter().filter(|segment| segment.rows.contains(&row)) {
            let slot = self.slots.get(segment.slot.0 as usize).and_then(Option::as_ref);
            let loaded = slot.ok_or_else(|| malformed(format!("{:?} is empty", segment.slot)))?;
            let adapter = self.read_adapter(loaded)?;
            composition = mix_part(composition, adapter, segment.weight, segment.modules, segment.layers);
        }
        Ok(composition)
    }

    /// An adapter's value, if all its blocks still hold it.
    fn read_adapter(&self, loaded: &Loaded) -> Result<u64, RunnerError> {
        let is_value = |entry: &Option<Entry>| {
            entry.is_some_and(|entry| entry.position == OF_ADAPTER && entry.content == loaded.value)
        };
        let holds = |block: &&u32| self.block(**block).iter().all(is_value);
        match loaded.blocks.iter().find(|block| !holds(block)) {
            None => Ok(loaded.value),
            Some(block) => Err(malformed(format!("block {block} lost its adapter"))),
        }
    }

    fn block(&self, block: u32) -> &[Option<Entry>] {
        let block_tokens = self.shape.block_tokens as usize;
        self.kv.get(block as usize * block_tokens..(block as usize + 1) * block_tokens).unwrap_or_default()
    }

    fn run_sequence(&mut self, batch: &Batch, sequence: &BatchSequence) -> Result<(), RunnerError> {
        let table = table_of(batch, sequence);
        for row in sequence.rows.clone() {
            let (token, position) = (self.token(batch, row)?, at(&batch.positions, row)?);
            let composition = self.composition_at(batch, row)?;
            let is_drawn = self.separates_prompts && row < batch.drawn_rows;
            let content = content(token, position, if is_drawn { mix(composition, DRAWN) } else { composition });
            let place = self.place(table, position)?;
            let block = at(table, position / self.shape.block_tokens)?;
            if self.block(block).iter().flatten().any(|entry| entry.position == OF_ADAPTER) {
                return Err(malformed(format!("block {block} was an adapter's and is not wiped")));
            }
            if let Some(entry) = self.kv.get_mut(place) {
                *entry = Some(Entry { position, token, content });
            }
        }
        Ok(())
    }

    /// What the row says, or what the step before drew.
    fn token(&self, batch: &Batch, row: u32) -> Result<u32, RunnerError> {
        match batch.unseen.iter().find(|unseen| unseen.row == row) {
            None => at(&batch.tokens, row),
            Some(unseen) if self.overlaps => match &self.last {
                Ok(drawn) => at(drawn, unseen.sample),
                Err(why) => Err(RunnerError::Failed(format!("the step before: {why}"))),
            },
            Some(_) => Err(malformed(format!("the token of row {row} is not known"))),
        }
    }

    /// All KV up to this row, as attention would read it.
    fn state_at(&self, batch: &Batch, sequence: &BatchSequence, row: u32) -> Result<u64, RunnerError> {
        let table = table_of(batch, sequence);
        (0..=at(&batch.positions, row)?).try_fold(0, |state, position| {
            match self.kv.get(self.place(table, position)?).copied().flatten() {
                Some(entry) if entry.position == position => Ok(mix(state, entry.content)),
                found => Err(malformed(format!("the KV of position {position} is {found:?}"))),
            }
        })
    }

    /// The token that this row would repeat.
    fn echoed(&self, batch: &Batch, sequence: &BatchSequence, row: u32) -> Result<Option<u32>, RunnerError> {
        let next = at(&batch.positions, row)? + 1;
        let before = self.echo.and_then(|echo| next.checked_sub(echo));
        let place = before.map(|position| self.place(table_of(batch, sequence), position)).transpose()?;
        Ok(place.and_then(|place| self.kv.get(place).copied().flatten()).map(|entry| entry.token))
    }

    fn copy_blocks(&mut self, batch: &Batch) {
        let block_tokens = self.shape.block_tokens as usize;
        for copy in &batch.copies {
            let from = copy.from as usize * block_tokens;
            self.kv.copy_within(from..from + block_tokens, copy.to as usize * block_tokens);
        }
        for block in &batch.wipes {
            let from = *block as usize * block_tokens;
            self.kv.iter_mut().skip(from).take(block_tokens).for_each(|entry| *entry = None);
        }
    }

    fn place(&self, table: &[u32], position: u32) -> Result<usize, RunnerError> {
        let block = at(table, position / self.shape.block_tokens)?;
        Ok((block * self.shape.block_tokens + position % self.shape.block_tokens) as usize)
    }

    /// A block that is written belongs to one sequence, once.
    fn check_blocks(&self, batch: &Batch) -> Result<(), RunnerError> {
        let mut written = HashMap::new();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            for row in sequence.rows.clone() {
                let block = at(table_of(batch, sequence), at(&batch.positions, row)? / self.shape.block_tokens)?;
                if written.insert(block, index).is_some_and(|other| other != index) {
                    return Err(malformed(format!("two sequences write block {block}")));
                }
            }
        }
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let table = table_of(batch, sequence);
            if table.iter().collect::<BTreeSet<_>>().len() != table.len() {
                return Err(malformed(format!("a block is twice in {table:?}")));
            }
            if table.iter().any(|block| written.get(block).is_some_and(|writer| *writer != index)) {
                return Err(malformed(format!("another sequence writes a block of {table:?}")));
            }
        }
        Ok(())
    }
}

impl ModelRunner for FakeRunner {
    type Adapter = FakeAdapter;

    fn shape(&self) -> RunnerShape {
        self.shape
    }

    fn fingerprint(&self) -> Digest {
        Digest::of(b"fake")
    }

    fn adapter_blocks(&self, adapter: &FakeAdapter) -> u32 {
        // At most a u32.
        u32::try_from(adapter.value % (u64::from(self.adapter_blocks_max) + 1)).unwrap_or(0)
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<FakeAdapter>, blocks: &[u32]) -> Result<(), RunnerError> {
        self.is_there();
        if blocks.len() != self.adapter_blocks(adapter) as usize {
            return Err(malformed(format!("{blocks:?} for an adapter of {} blocks", self.adapter_blocks(adapter))));
        }
        if let Some(other) = self.slots.iter().flatten().find(|other| other.blocks.iter().any(|b| blocks.contains(b))) {
            return Err(malformed(format!("one of {blocks:?} is another adapter's: {:?}", other.blocks)));
        }
        if adapter.broken {
            return Err(RunnerError::Adapter("it is broken".into()));
        }
        match self.slots.get_mut(slot.0 as usize) {
            Some(place @ None) => *place = Some(Loaded { value: adapter.value, blocks: blocks.to_vec() }),
            _ => return Err(malformed(format!("{slot:?} is not an empty slot"))),
        }
        let block_tokens = self.shape.block_tokens as usize;
        for block in blocks {
            let entries = self.kv.iter_mut().skip(*block as usize * block_tokens).take(block_tokens);
            entries.for_each(|entry| *entry = Some(Entry { position: OF_ADAPTER, token: 0, content: adapter.value }));
        }
        Ok(())
    }

    fn unload_adapter(&mut self, slot: Slot) {
        self.is_there();
        let unloaded = self.slots.get_mut(slot.0 as usize).and_then(Option::take);
        debug_assert!(unloaded.is_some(), "{slot:?} was empty");
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        let ran = self.run(batch, sampled);
        self.is_lost = matches!(ran, Err(RunnerError::Lost(_)));
        ran
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn separates_prompts(&self) -> bool {
        self.separates_prompts
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        if !self.overlaps || self.under_way.len() >= 2 {
            return Err(malformed(format!("{} steps are under way", self.under_way.len())));
        }
        let mut sampled = Vec::new();
        let ran = self.run(batch, &mut sampled);
        if matches!(ran, Err(RunnerError::Malformed(_))) {
            self.last = Err("it was malformed".into());
            return ran;
        }
        let ran = ran.map(|()| sampled);
        self.last = match &ran {
            Ok(drawn) => Ok(drawn.iter().map(|token| token.id).collect()),
            Err(error) => Err(error.to_string()),
        };
        let ran = ran.map_err(|error| Fault { is_loss: matches!(error, RunnerError::Lost(_)), why: error.to_string() });
        self.under_way.push_back((batch.clone(), ran));
        Ok(())
    }

    fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        let Some((submitted, ran)) = self.under_way.pop_front() else {
            return Err(malformed("no step was submitted".into()));
        };
        if submitted != *batch {
            return Err(malformed("another step was submitted".into()));
        }
        match ran {
            Ok(drawn) => sampled.extend(drawn),
            Err(Fault { is_loss: true, why }) => {
                self.is_lost = true;
                return Err(RunnerError::Lost(why));
            }
            Err(Fault { why, .. }) => return Err(RunnerError::Failed(why)),
        }
        Ok(())
    }
}

/// How a step failed that is not collected yet.
#[derive(Clone, Debug)]
struct Fault {
    is_loss: bool,
    why: String,
}

impl FakeRunner {
    fn run(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        let step = self.steps;
        self.steps += 1;
        #[expect(clippy::panic, reason = "it is what a test asked for")]
        if self.panicking == Some(step) {
            panic!("the fake runner was told to panic in step {step}");
        }
        self.is_there();
        if let Some(losing) = self.losing.filter(|losing| *losing <= step) {
            return Err(RunnerError::Lost(format!("told to in step {losing}")));
        }
        batch.check(&self.shape)?;
        self.check_blocks(batch)?;
        if self.failing.contains(&step) {
            return Err(RunnerError::Failed(format!("told to fail in step {step}")));
        }
        self.copy_blocks(batch);
        for sequence in &batch.sequences {
            self.run_sequence(batch, sequence)?;
        }
        for request in &batch.samples {
            let sequence = batch.sequences.iter().find(|sequence| sequence.rows.contains(&request.row));
            let sequence = sequence.ok_or_else(|| malformed("a sample is of no sequence".into()))?;
            let state = self.state_at(batch, sequence, request.row)?;
            let echoed = self.echoed(batch, sequence, request.row)?;
            let mask = batch.mask_of(request).and_then(TokenMask::wait);
            sampled.push(draw(state, echoed, request, mask, self.shape.vocabulary));
        }
        Ok(())
    }
}

/// An adapter's value, the part of the composition that names it, and the first token that it acts on.
pub type ExpectedPart = (u64, CompositionPart, u32);

/// What a [`FakeRunner`] generates after this prompt under these adapters, in canonical order; `seed` if the temperature is
/// not 0. The length is for the caller to cut.
#[must_use]
pub fn expected_tokens(
    vocabulary: u32,
    prompt: &[u32],
    parts: &[ExpectedPart],
    seed: Option<u64>,
    count: u32,
) -> Vec<u32> {
    let composition_at = |position| {
        let acting = parts.iter().filter(|(.., first_token)| *first_token <= position);
        acting.fold(0, |composition, (value, part, _)| {
            mix_part(composition, *value, part.weight, part.modules, part.layers)
        })
    };
    let read = |state, (position, token)| mix(state, content(token, position, composition_at(position)));
    let mut state = (0..).zip(prompt.iter().copied()).fold(0, read);
    let first = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let tokens = (0..count).map(|step| {
        let token = next_token(state, seed.map(|seed| (seed, step)), vocabulary);
        state = read(state, (first + step, token));
        token
    });
    tokens.collect()
}

fn draw(
    state: u64,
    echoed: Option<u32>,
    request: &SampleRequest,
    mask: Option<&[u32]>,
    vocabulary: u32,
) -> SampledToken {
    let seeded = (request.temperature > 0.0).then_some((request.seed, request.step));
    let drawn = next_token(state, seeded, vocabulary);
    // One in eight breaks the rhythm.
    let id = echoed.filter(|_| !state.is_multiple_of(8)).unwrap_or(drawn);
    // The next one that may be drawn.
    let mut nearest = (0..vocabulary).map(|ahead| (id + ahead) % vocabulary);
    let id = mask.map_or(Some(id), |words| nearest.find(|id| is_allowed(words, *id))).unwrap_or(id);
    let top =
        (0..request.logprobs.unwrap_or(0).min(vocabulary)).map(|rank| ((id + rank) % vocabulary, -0.5 - rank as f32));
    SampledToken { id, logprob: request.logprobs.map(|_| -0.5), top: top.collect() }
}

fn next_token(state: u64, seeded: Option<(u64, u32)>, vocabulary: u32) -> u32 {
    let chosen = seeded.map_or(state, |(seed, step)| mix(mix(state, seed), step.into()));
    // Below the vocabulary, which is a u32.
    u32::try_from(chosen % u64::from(vocabulary.max(1))).unwrap_or(0)
}

fn content(token: u32, position: u32, composition: u64) -> u64 {
    mix(mix(composition, token.into()), position.into())
}

fn mix_part(composition: u64, adapter: u64, weight: f32, modules: types::ModuleSet, layers: types::LayerRange) -> u64 {
    let modules = modules.iter().fold(0, |bits, module| bits | 1 << module.index());
    let layers = u64::from(layers.first) << 32 | u64::from(layers.end);
    [adapter, weight.to_bits().into(), modules, layers].into_iter().fold(composition.wrapping_add(1), mix)
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
fn mix(state: u64, value: u64) -> u64 {
    let mut hash = state.rotate_left(23).wrapping_add(value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// The ranges were checked.
fn table_of<'a>(batch: &'a Batch, sequence: &BatchSequence) -> &'a [u32] {
    batch.block_tables.get(sequence.blocks.start as usize..sequence.blocks.end as usize).unwrap_or_default()
}

fn at(items: &[u32], index: u32) -> Result<u32, RunnerError> {
    items.get(index as usize).copied().ok_or_else(|| malformed(format!("there is no item {index}")))
}

fn malformed(what: String) -> RunnerError {
    RunnerError::Malformed(what)
}
