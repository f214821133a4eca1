//! What an output must match, as masks over the base's tokens: JSON schemas, regular expressions and Lark grammars, read by
//! `llguidance`. A token may come next if the text so far with the token's bytes is the beginning of a match; which tokens the
//! text was made of does not matter, and special tokens are no text.
//!
//! Not here: when a mask is asked for (that is `engine`), what is done with it (that is the sampler), and who keeps what was
//! compiled.

mod output;
mod vocabulary;
mod workers;

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use engine::{OutputConstraint, TokenMask};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::{Value, json};
use types::{Blame, Constraint};

use self::output::Output;
use self::vocabulary::Vocabulary;
pub use self::workers::MaskWorkers;
use crate::{Base, ModelError};

/// Characters of an error's text that are told: it may quote the constraint.
const MESSAGE_CHARACTERS_MAX: usize = 400;
/// For rules that name each other in a long row: what is not touched takes no memory.
const STACK_BYTES: usize = 256 << 20;
/// States of a lexer, 1 to 2 KiB each.
const LEXER_STATES_MAX: usize = 20_000;
/// Memory of a lexer: what grows beyond it is refused, or given up.
const LEXER_BYTES_MAX: u64 = 32 << 20;
/// Work on reading one, in the library's units.
const READ_LEXER_FUEL: u64 = 300_000;
/// Work on one mask, in the same units: at about 14 a microsecond this is 4 ms.
const MASK_LEXER_FUEL: u64 = 50_000;
/// The same of the parser, at about 20 a microsecond at best: 0.5 ms, and up to 5 ms.
const MASK_ITEMS_MAX: usize = 10_000;
/// What is told then.
const TOO_LARGE: &str = "it takes too much memory; make it simpler";
/// Whitespace between the parts of a JSON text, at most; without a bound a small model may write nothing else.
const JSON_WHITESPACE: &str = r"[ \n\r\t]{1,20}";

/// A constraint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConstraintError {
    /// It is not what it says it is, asks for something that cannot be done, or is too large.
    #[error("the {kind} cannot be used: {reason}")]
    Invalid {
        /// What it is.
        kind: &'static str,
        /// Which part of it, and why.
        reason: String,
    },
    /// No text can match it, or none that this base has tokens for.
    #[error("nothing can match the {kind}: {reason}")]
    Unsatisfiable {
        /// What it is.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// An output could not be kept to it.
    #[error("the output could not be kept to its constraint: {0}")]
    Failed(String),
    /// Too many others are being read.
    #[error("too many constraints are being read; try again later")]
    Busy,
    /// It was not the constraint's fault.
    #[error("a constraint was not read: {0}")]
    Internal(String),
    /// The operating system gave no thread.
    #[error("no thread to read a constraint; raise the limit on threads")]
    Thread(#[source] std::io::Error),
}

impl ConstraintError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid_constraint",
            Self::Unsatisfiable { .. } => "unsatisfiable_constraint",
            Self::Failed(_) => "constraint_failed",
            Self::Busy => "constraints_busy",
            Self::Internal(_) | Self::Thread(_) => "internal",
        }
    }

    /// Whose fault it is; the host turns it to the function where a plugin wrote the constraint.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Invalid { .. } | Self::Unsatisfiable { .. } | Self::Failed(_) => Blame::Caller,
            Self::Busy => Blame::Capacity,
            Self::Internal(_) | Self::Thread(_) => Blame::Host,
        }
    }
}

/// Reads constraints for one base. It holds the base's tokens as trees of bytes: some tens of MiB.
pub struct ConstraintCompiler {
    factory: ParserFactory,
}

impl ConstraintCompiler {
    /// For the tokens of this base; those that end a sequence end a text that is complete. Takes a good part of a second.
    ///
    /// # Errors
    /// If the tokens make no tree.
    pub fn new(base: &Base) -> Result<Self, ModelError> {
        let tokenizer = base.tokenizer();
        let bytes_of = |id| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
        let count = u32::try_from(tokenizer.tokens()).unwrap_or(u32::MAX);
        Self::of_tokens((0..count).map(bytes_of).collect(), base.eos())
    }

    /// For tokens of these bytes; those without any are never allowed, but for `eos`.
    fn of_tokens(tokens: Vec<Vec<u8>>, eos: &[u32]) -> Result<Self, ModelError> {
        let environment: TokEnv = Arc::new(Vocabulary::new(tokens, eos)?);
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| ModelError::Unsupported(format!("tokens for constraints: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: READ_LEXER_FUEL,
            step_lexer_fuel: MASK_LEXER_FUEL,
            step_max_items: MASK_ITEMS_MAX,
            max_lexer_states: LEXER_STATES_MAX,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory })
    }

    /// Reads a constraint and finds out what may come first. CPU work of milliseconds, in the worst case of a second: not for
    /// an async thread.
    ///
    /// # Errors
    /// What is wrong with it, with the part that is.
    pub fn compile(&self, constraint: &Constraint) -> Result<CompiledConstraint, ConstraintError> {
        thread::scope(|scope| {
            let compiling = thread::Builder::new().name("constraint".into()).stack_size(STACK_BYTES);
            let compiling = compiling.spawn_scoped(scope, || self.compile_here(constraint));
            let panicked = |_| ConstraintError::Invalid { kind: constraint.kind(), reason: "it cannot be read".into() };
            compiling.map_err(ConstraintError::Thread)?.join().map_err(panicked)?
        })
    }

    fn compile_here(&self, constraint: &Constraint) -> Result<CompiledConstraint, ConstraintError> {
        let kind = constraint.kind();
        let invalid = |reason: &dyn Display| ConstraintError::Invalid { kind, reason: told(reason) };
        let grammar = match constraint {
            Constraint::JsonSchema(text) => {
                let schema: Value = serde_json::from_str(text).map_err(|error| invalid(&error))?;
                TopLevelGrammar::from_json_schema(with_bounded_whitespace(schema))
            }
            Constraint::Regex(text) => TopLevelGrammar::from_regex(text),
            Constraint::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let fresh = self.factory.create_parser(grammar).map_err(|error| invalid(&format_args!("{error:#}")))?;
        let first = Matcher::new(Ok(fresh.clone())).compute_mask_or_eos();
        let first = first.map_err(|error| ConstraintError::Unsatisfiable { kind, reason: told(&error) })?;
        let first = Arc::new(TokenMask::known(first.into()));
        let mut compiled = CompiledConstraint {
            kind,
            fresh: Mutex::new(fresh),
            first,
            broken: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            bytes_at_first: 0,
        };
        if compiled.measure() > LEXER_BYTES_MAX {
            return Err(invalid(&TOO_LARGE));
        }
        compiled.bytes_at_first = compiled.bytes();
        Ok(compiled)
    }
}

/// A constraint that was read. Outputs that it is for share what their lexers learn.
pub struct CompiledConstraint {
    kind: &'static str,
    /// Before the first token.
    fresh: Mutex<TokenParser>,
    first: Arc<TokenMask>,
    /// What is shared is of no use any more.
    broken: AtomicBool,
    /// As they were measured last.
    bytes: AtomicU64,
    /// As they were when it was read.
    bytes_at_first: u64,
}

impl CompiledConstraint {
    /// The constraint of one output that has these tokens already. CPU work of some microseconds a token.
    ///
    /// # Errors
    /// If they do not match.
    pub fn begin(
        self: &Arc<Self>,
        tokens: &[u32],
        workers: &Arc<MaskWorkers>,
    ) -> Result<Box<dyn OutputConstraint>, ConstraintError> {
        let unmatched = |reason: &dyn Display| ConstraintError::Unsatisfiable { kind: self.kind, reason: told(reason) };
        let begun = caught(|| {
            let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut matcher = Matcher::new(Ok(fresh));
            matcher.consume_tokens(tokens).map(|()| matcher)
        });
        let begun = begun.ok_or_else(|| {
            self.set_broken();
            ConstraintError::Internal("what was read of it is of no use any more; try again".to_owned())
        })?;
        let matcher = begun.map_err(|error| unmatched(&error))?;
        let first = tokens.is_empty().then(|| Arc::clone(&self.first));
        Ok(Box::new(Output::new(Arc::clone(self), matcher, first, Arc::clone(workers))))
    }

    /// Memory that it took when its last mask was found out, about; it grows as it is used. Waits for nobody.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// By how much it has grown since it was read.
    #[must_use]
    pub fn grown_bytes(&self) -> u64 {
        self.bytes().saturating_sub(self.bytes_at_first)
    }

    /// Memory that it takes now; as much as there can be if that cannot be found out. Waits for a mask that is being found out.
    fn measure(&self) -> u64 {
        let bytes = caught(|| {
            let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            fresh.parser.lexer_stats().num_bytes as u64
        });
        let bytes = bytes.unwrap_or(u64::MAX);
        self.bytes.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// Whether it has grown beyond what one may take.
    fn is_too_large(&self) -> bool {
        self.measure() > LEXER_BYTES_MAX
    }

    fn set_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether it is to be read again before it is used again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

/// What comes of it, unless it panics. The library catches most of its own panics; after one, those that share its lexer may not.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The message as it may be told: without what the library adds for its own debugging, and not too long.
fn told(message: &dyn Display) -> String {
    let message = message.to_string();
    let message = message.split("\n<").next().unwrap_or_default().trim();
    if message.contains("panic: ") {
        return "it cannot be read".to_owned();
    }
    message.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

/// The schema with a bound on whitespace, unless it has options of its own (`x-guidance`).
fn with_bounded_whitespace(mut schema: Value) -> Value {
    if let Some(members) = schema.as_object_mut()
        && !members.contains_key("x-guidance")
    {
        members.insert("x-guidance".into(), json!({ "whitespace_pattern": JSON_WHITESPACE }));
    }
    schema
}

#[cfg(test)]
mod tests;
