//! A host that is killed in the middle of everything, again and again over one data folder: what was acknowledged is
//! there, what was not is whole or absent, and nothing is left lying about. The plan of each run is drawn from a seed that
//! it prints; `CRASH_SEED=N` repeats it (as far as timing lets it).

mod callers;
mod chain;
mod damage;
mod disk;
mod files;
mod ledger;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::{Client, Options, Server, base, deploy_examples, tenant_key, tenon};

use callers::{Heard, Progress, Question, ask, questions};
use chain::Chains;
use ledger::{Changes, Ledger, change_adapters, change_functions};

const SEED: u64 = 20_261_121;
const KILLS: usize = 20;
/// Callers who stream, and callers beside them who ask for the answer in one piece.
const STREAMS: usize = 50;
const WHOLE: usize = 10;
/// Of so many rounds, one is followed by so many starts that are killed as well, before the one that is let go on.
const RECOVERY_KILLED_EVERY: usize = 4;
const STARTS_KILLED: usize = 3;
const NO_MORE_WAITING: Duration = Duration::from_secs(60);

/// Draws of a plan that can be repeated (Steele, Lea and Flood's SplitMix64).
pub(super) struct Random(u64);

impl Random {
    fn from_environment(test: &str) -> Self {
        let seed = std::env::var("CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
        eprintln!("{test}: CRASH_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In `[from, to)`.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }
}

/// When a round ends, counted from when all callers have asked.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So much later.
    Asked(Duration),
    /// When the answers to all have begun, and so much later.
    Begun(Duration),
    /// When so many callers have their whole answer.
    Ended(usize),
}

impl Moment {
    /// While most are queued, in prefill, in mid-stream, around the ends: in turn.
    fn draw(round: usize, random: &mut Random) -> Self {
        let ms = Duration::from_millis;
        match round % 4 {
            0 => Self::Asked(ms(random.between(0, 120))),
            1 => Self::Begun(ms(random.between(0, 60))),
            2 => Self::Begun(ms(random.between(60, 2000))),
            _ => Self::Ended(usize::try_from(random.between(8, 28)).expect("small")),
        }
    }

    fn wait(self, streams: &Progress, whole: &Progress) {
        let until = |holds: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !holds() && started.elapsed() < NO_MORE_WAITING {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        until(&|| streams.asked() + whole.asked() == STREAMS + WHOLE);
        match self {
            Self::Asked(time) => std::thread::sleep(time),
            Self::Begun(time) => {
                until(&|| streams.begun() == STREAMS);
                std::thread::sleep(time);
            }
            Self::Ended(count) => until(&|| streams.ended() + whole.ended() >= count),
        }
    }
}

/// What the callers of one round heard.
struct Round {
    /// Streams that had begun and not ended when the host was killed.
    running: usize,
    heard: Vec<Heard>,
    changes: Vec<Changes>,
}

/// Fifty streams, ten callers beside them, and two who change things; the host is killed in the middle of them.
fn run_and_kill(server: &mut Server, questions: &[Question], round: usize, random: &mut Random) -> Round {
    let moment = Moment::draw(round, random);
    let delays: Vec<Duration> = (0..STREAMS + WHOLE).map(|_| Duration::from_millis(random.between(0, 50))).collect();
    let (streams, whole) = (Progress::default(), Progress::default());
    let client = server.client();
    let (running, heard, changes) = std::thread::scope(|scope| {
        let (streams, whole, client) = (&streams, &whole, &client);
        let callers: Vec<_> = delays
            .iter()
            .enumerate()
            .map(|(caller, delay)| {
                scope.spawn(move || {
                    std::thread::sleep(*delay);
                    let kind = caller % questions.len();
                    let streamed = caller < STREAMS;
                    ask(client, kind, &questions[kind], streamed, if streamed { streams } else { whole })
                })
            })
            .collect();
        let adapters = scope.spawn(move || change_adapters(client, round));
        let functions = scope.spawn(move || change_functions(client, round));
        moment.wait(streams, whole);
        // Those that end between the count and the kill are counted as running; none that had not begun is.
        let (ended, begun, asked) = (streams.ended(), streams.begun(), streams.asked());
        let whole_asked = whole.asked();
        server.kill();
        assert_eq!((asked, whole_asked), (STREAMS, WHOLE), "all were there");
        assert!(!matches!(moment, Moment::Begun(_)) || begun == STREAMS, "{begun} streams had begun");
        let heard: Result<Vec<Heard>, _> = callers.into_iter().map(|caller| caller.join()).collect();
        let changes: Result<Vec<Changes>, _> = [adapters, functions].into_iter().map(|one| one.join()).collect();
        let (Ok(heard), Ok(changes)) = (heard, changes) else { panic!("the host's log:\n{}", server.log()) };
        (begun - ended, heard, changes)
    });
    let whole = heard.iter().filter(|one| one.is_whole).count();
    eprintln!("  round {round}: killed at {moment:?}, {running} streams in flight, {whole} answers whole");
    Round { running, heard, changes }
}

/// Starts the host and kills it before, while or just after it recovers. `usual` is how long a start takes; recovery is
/// the last thing in it.
fn kill_a_start(data: &Path, usual: Duration, random: &mut Random) {
    let delay = usual.mul_f64(random.between(500, 1100) as f64 / 1000.0);
    let mut command = tenon();
    command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--base"]).arg(base().expect("a base"));
    command.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("tenon starts");
    std::thread::sleep(delay);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

#[test]
fn twenty_kills_lose_nothing_that_was_acknowledged() {
    let test = "twenty_kills_lose_nothing_that_was_acknowledged";
    let mut random = Random::from_environment(test);
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    deploy_examples(&server.client());
    let other = tenant_key(&server.client(), "acme", &["invoke", "receipts"]);
    let questions = questions(&other);
    let operator = server.key();
    let expected: Vec<String> = questions.iter().map(|question| question.answer(&server.client())).collect();
    let mut chains = Chains::new([operator.clone(), other]);
    let mut ledger = Ledger::of_examples(&server.client());
    let mut restart = Duration::from_secs(1);
    let mut running_most = 0;
    for round in 0..KILLS {
        let Round { running, heard, changes } = run_and_kill(&mut server, &questions, round, &mut random);
        running_most = running_most.max(running);
        for one in &heard {
            assert!(one.status.is_none_or(|status| status == 200), "{one:?}");
            assert!(!one.is_whole || one.text == expected[one.kind], "{one:?}: not {}", expected[one.kind]);
            assert!(expected[one.kind].starts_with(&one.text), "{one:?}: not the beginning of {}", expected[one.kind]);
        }
        drop(server);
        if round % RECOVERY_KILLED_EVERY == 1 {
            (0..STARTS_KILLED).for_each(|_| kill_a_start(&data, restart, &mut random));
        }
        let begun = Instant::now();
        let again = Server::start(test, Options { data: Some(data.clone()), ..Options::default() });
        server = again.expect("it started before");
        restart = begun.elapsed();
        files::check(&data);
        let client = server.client();
        assert_eq!(server.key(), operator, "the development key holds on");
        ledger.settle(&client, changes);
        chains.check(&client, &heard, &data);
        check_answers(&client, &questions, &expected);
        if round == KILLS - 1 {
            ledger.use_all(&client);
        }
        eprintln!("    restarted in {restart:?}, checked in {:?}", begun.elapsed() - restart);
    }
    chains.report();
    // Answers are short, and the first may have ended before the last was asked for.
    assert!(running_most >= STREAMS * 4 / 5, "no kill found more than {running_most} of {STREAMS} streams in flight");
}

/// The answers of before, all at the same time.
fn check_answers(client: &Client, questions: &[Question], expected: &[String]) {
    std::thread::scope(|scope| {
        for (question, expected) in questions.iter().zip(expected) {
            scope.spawn(move || assert_eq!(question.answer(client), *expected, "{}", question.path));
        }
    });
}
