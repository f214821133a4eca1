//! What one instance carries: what its request lent it, and how much of that is used up. Not here: the imports that
//! use it (`imports/`).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use wasmtime_wasi::{Deterministic, HostMonotonicClock, HostWallClock, ResourceTable, WasiCtx, WasiCtxView, WasiView};

use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::imports::http::Sender;
use crate::imports::sessions::Left;
use crate::limiter::SumLimiter;
use crate::meter::{CpuMeter, Stop};
use crate::{Clock, PluginLimits, Session};

/// Guests see time in these steps, too coarse to time anything secret.
const CLOCK_STEP: Duration = Duration::from_millis(10);
/// Length of the cycle of random bytes that WASI guests see.
const WASI_RANDOM_BYTES: usize = 4096;

pub(crate) struct InstanceState {
    pub(crate) session: Session,
    pub(crate) limits: Arc<PluginLimits>,
    pub(crate) limiter: SumLimiter,
    pub(crate) random: blake3::OutputReader,
    pub(crate) random_bytes_left: u32,
    pub(crate) kv_writes_left: u32,
    pub(crate) tool_calls_left: u32,
    pub(crate) tokenizer_bytes_left: usize,
    pub(crate) log_bytes_left: usize,
    pub(crate) log_lines_left: u32,
    pub(crate) log_lines_dropped: u32,
    /// Of all requests.
    pub(crate) log_lines_dropped_ever: Arc<AtomicU64>,
    /// Calls of functions and generations.
    pub(crate) left: Left,
    /// Whether it is of world `agent`.
    pub(crate) is_agent: bool,
    pub(crate) meter: Arc<CpuMeter>,
    host_calls_left: u32,
    request_host_calls_left: u32,
    /// The limit that a call of WASI went over: that call could not say so itself.
    over_calls: Option<Stop>,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    sender: Sender,
    table: ResourceTable,
}

/// What a component is like, as far as its instances differ by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfGuest {
    pub(crate) is_agent: bool,
    pub(crate) has_wasi_random: bool,
}

impl InstanceState {
    pub(crate) fn new(
        session: Session,
        limits: &Arc<PluginLimits>,
        meter: &Arc<CpuMeter>,
        OfGuest { is_agent, has_wasi_random }: OfGuest,
        dropped_ever: &Arc<AtomicU64>,
    ) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles_max);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(Sender::field_size_limit(limits));
        Self {
            limits: Arc::clone(limits),
            limiter: SumLimiter::new(limits),
            random: random(session.seed, "tenon plugin random v1"),
            random_bytes_left: limits.random_bytes_max,
            kv_writes_left: limits.kv_writes_max,
            tool_calls_left: limits.tool_calls_max,
            tokenizer_bytes_left: limits.tokenizer_bytes_max,
            log_bytes_left: limits.log_bytes_max,
            log_lines_left: limits.log_lines_max,
            log_lines_dropped: 0,
            log_lines_dropped_ever: Arc::clone(dropped_ever),
            left: Left::new(limits),
            is_agent,
            meter: Arc::clone(meter),
            host_calls_left: limits.host_calls_max,
            request_host_calls_left: limits.request_host_calls_max,
            over_calls: None,
            wasi: inert_wasi(&session, limits, has_wasi_random),
            http,
            sender: Sender::new(&session, limits),
            table,
            session,
        }
    }

    /// What the guest holds handles of.
    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    /// What calls of WASI went over. They are wasmtime's own functions and take what they need of the state without asking, so the
    /// guest goes on to the end of the epoch, or of its call, where this is looked at.
    pub(crate) const fn over_calls(&self) -> Option<Stop> {
        self.over_calls
    }

    /// Whether its guest has asked the host for nothing yet.
    pub(crate) fn is_untouched(&mut self) -> bool {
        self.host_calls_left == self.limits.host_calls_max
            && self.request_host_calls_left == self.limits.request_host_calls_max
            && self.over_calls.is_none()
            && self.table.is_empty()
    }

    fn count_wasi_call(&mut self) {
        let of_call = self.host_calls_left.checked_sub(1);
        let of_request = self.request_host_calls_left.checked_sub(1);
        self.host_calls_left = of_call.unwrap_or(0);
        self.request_host_calls_left = of_request.unwrap_or(0);
        let over =
            [of_call.is_none().then_some(Stop::HostCalls), of_request.is_none().then_some(Stop::RequestHostCalls)];
        self.over_calls = self.over_calls.or_else(|| over.into_iter().flatten().next());
    }

    /// Gives a new call its host calls, and forgets what the last one ran into and survived.
    pub(crate) fn begin_call(&mut self) {
        self.limiter.take_refused();
        // An agent has one call, which is the whole request.
        self.host_calls_left = if self.is_agent { u32::MAX } else { self.limits.host_calls_max };
    }

    /// Counts a call of a host function; each import begins with it.
    pub(crate) fn count_host_call(&mut self) -> wasmtime::Result<()> {
        let of_call = self.host_calls_left.checked_sub(1).ok_or(Stop::HostCalls);
        let of_request = self.request_host_calls_left.checked_sub(1).ok_or(Stop::RequestHostCalls);
        self.host_calls_left = of_call.map_err(wasmtime::Error::new)?;
        self.request_host_calls_left = of_request.map_err(wasmtime::Error::new)?;
        Ok(())
    }
}

impl WasiView for InstanceState {
    // Each function of WASI asks for this once, when it begins.
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.count_wasi_call();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for InstanceState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.count_wasi_call();
        WasiHttpCtxView { hooks: &mut self.sender, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Endless bytes that depend on the seed alone.
fn random(seed: u64, domain: &str) -> blake3::OutputReader {
    blake3::Hasher::new_derive_key(domain).update(&seed.to_le_bytes()).finalize_xof()
}

/// No environment, arguments, folders or sockets; standard streams that are closed or swallow; coarse clocks; seeded,
/// repeating randomness, one byte of it where nobody can ask for any. It is there so that components link, not so that they do anything.
fn inert_wasi(session: &Session, limits: &PluginLimits, has_random: bool) -> WasiCtx {
    let seeded = |domain| {
        let mut bytes = vec![0; if has_random { WASI_RANDOM_BYTES } else { 1 }];
        random(session.seed, domain).fill(&mut bytes);
        Deterministic::new(bytes)
    };
    WasiCtx::builder()
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .secure_random(seeded("tenon plugin wasi random v1"))
        .insecure_random(seeded("tenon plugin wasi insecure random v1"))
        .insecure_random_seed(session.seed.into())
        .max_random_size(limits.random_bytes_max.into())
        .wall_clock(CoarseClock(Arc::clone(&session.clock)))
        .monotonic_clock(CoarseClock(Arc::clone(&session.clock)))
        .build()
}

/// The request's clock as guests see it.
pub(crate) struct CoarseClock(pub(crate) Arc<dyn Clock>);

impl CoarseClock {
    pub(crate) fn elapsed(&self) -> Duration {
        coarse(self.0.elapsed())
    }

    pub(crate) fn unix_time(&self) -> Duration {
        coarse(self.0.unix_time())
    }
}

/// A time in the steps that guests see.
pub(crate) fn coarse(time: Duration) -> Duration {
    let step_ns = CLOCK_STEP.as_nanos();
    let steps = time.as_nanos() / step_ns;
    Duration::from_nanos(u64::try_from(steps * step_ns).unwrap_or(u64::MAX))
}

impl HostWallClock for CoarseClock {
    fn resolution(&self) -> Duration {
        CLOCK_STEP
    }

    fn now(&self) -> Duration {
        self.unix_time()
    }
}

impl HostMonotonicClock for CoarseClock {
    fn resolution(&self) -> u64 {
        u64::try_from(CLOCK_STEP.as_nanos()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_coarse() {
        assert_eq!(coarse(Duration::from_micros(19_999)), Duration::from_millis(10));
        assert_eq!(coarse(Duration::from_micros(9_999)), Duration::ZERO);
        assert_eq!(coarse(Duration::from_secs(1_800_000_000)), Duration::from_secs(1_800_000_000));
    }

    #[test]
    fn randomness_depends_on_the_seed_alone() {
        let first = |seed, domain| {
            let mut bytes = [0; 16];
            random(seed, domain).fill(&mut bytes);
            bytes
        };
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
