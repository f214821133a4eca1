//! Work on adapters whose askers leave, over a base that gives its weights out only when it is let.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use model::ModelError;
use types::Module;

use super::*;

const LOADS_MAX: usize = 2;
/// Long enough for work to begin that should not; nothing that must happen is given only so long.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Checking or packing a DoRA adapter stops in `dense` while the gate is closed.
struct GatedBase {
    config: ModelConfig,
    is_closed: Mutex<bool>,
    opened: Condvar,
    inside: AtomicUsize,
    inside_most: AtomicUsize,
    calls: AtomicUsize,
}

impl AdapterBase for GatedBase {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn digest(&self) -> Option<Digest> {
        None
    }

    fn dense(&self, _: usize, _: Module) -> Result<Vec<f32>, ModelError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.inside_most.fetch_max(inside, Ordering::SeqCst);
        let is_closed = self.is_closed.lock().expect("the gate");
        drop(self.opened.wait_while(is_closed, |is_closed| *is_closed).expect("the gate"));
        self.inside.fetch_sub(1, Ordering::SeqCst);
        Ok(vec![0.5; 32 * 64])
    }

    fn may_be_called(&self, _: &str) -> bool {
        true
    }
}

impl GatedBase {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            config: base(),
            is_closed: Mutex::new(false),
            opened: Condvar::new(),
            inside: AtomicUsize::new(0),
            inside_most: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        })
    }

    fn close(&self) {
        *self.is_closed.lock().expect("the gate") = true;
    }

    fn open(&self) {
        *self.is_closed.lock().expect("the gate") = false;
        self.opened.notify_all();
    }

    /// How often weights were asked for since the last time.
    fn take_calls(&self) -> usize {
        self.calls.swap(0, Ordering::SeqCst)
    }
}

/// Opens the gate also when a test fails: the runtime waits for its threads.
struct Opened<'a>(&'a GatedBase);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// [`peft`] with magnitudes.
fn dora(fill: f32) -> (Bytes, Bytes) {
    let (config, weights) = peft(fill);
    let config = String::from_utf8(config.to_vec()).expect("text").replace("{", r#"{"use_dora":true,"#);
    let file = safetensors::SafeTensors::deserialize(&weights).expect("a file");
    let magnitude = 4_f32.to_le_bytes().repeat(32);
    let mut tensors = file.tensors();
    for layer in 0..2 {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.v_proj.lora_magnitude_vector");
        tensors.push((name, TensorView::new(Dtype::F32, vec![32], &magnitude).expect("a tensor")));
    }
    (config.into(), safetensors::serialize(tensors, None).expect("a file").into())
}

async fn over_gated(base: &Arc<GatedBase>) -> AdapterStore {
    let base = Arc::clone(base);
    over(Arc::new(MemoryStore::default()), |config| {
        (config.base, config.loads_max) = (base, LOADS_MAX);
    })
    .await
}

async fn add_dora(adapters: &AdapterStore, name: &str, fill: f32) -> Digest {
    let (config, weights) = dora(fill);
    adapters.add_bytes(&tenant("acme"), &alias(name), plain(config, weights), None).await.expect("added").digest
}

/// Asks, and leaves when so many are at the gate and a moment has passed.
async fn leave<T: std::fmt::Debug>(asking: impl Future<Output = T>, gated: &GatedBase, inside: usize) {
    let begun = async {
        wait_until("begun", || gated.inside.load(Ordering::SeqCst) >= inside).await;
        tokio::time::sleep(A_MOMENT).await;
    };
    tokio::select! {
        answer = asking => panic!("the gate is closed: {answer:?}"),
        () = begun => {}
    }
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_load_ends_and_is_kept_though_whoever_asked_has_left() {
    let gated = GatedBase::new();
    let adapters = over_gated(&gated).await;
    let mut digests = Vec::new();
    for (name, fill) in [("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)] {
        digests.push(add_dora(&adapters, name, fill).await);
    }
    let _opened = Opened(&gated);
    gated.close();
    gated.take_calls();
    for (asked, digest) in digests.iter().chain(&digests).chain(&digests).enumerate() {
        leave(adapters.lease(&tenant("acme"), *digest), &gated, LOADS_MAX.min(asked + 1)).await;
    }
    assert_eq!(gated.inside_most.load(Ordering::SeqCst), LOADS_MAX, "the others wait");
    assert_eq!(gated.take_calls(), LOADS_MAX, "asked three times, begun once");

    gated.open();
    let residency = |digest: &Digest| adapters.memory.residency(&(Some(tenant("acme")), *digest));
    wait_until("kept", || digests[..2].iter().all(|digest| residency(digest) == Residency::Memory)).await;
    assert_eq!(gated.take_calls(), LOADS_MAX, "the second layer of each");
    assert_eq!((adapters.leases(), residency(&digests[2])), (0, Residency::Storage), "it had not begun");
    adapters.lease(&tenant("acme"), digests[0]).await.expect("a lease");
    assert_eq!(gated.take_calls(), 0, "it was in memory");
    adapters.lease(&tenant("acme"), digests[2]).await.expect("a lease");
    assert_eq!(gated.take_calls(), 2);
}

#[tokio::test]
async fn a_check_keeps_its_permit_though_whoever_asked_has_left() {
    let gated = GatedBase::new();
    let adapters = over_gated(&gated).await;
    let _opened = Opened(&gated);
    gated.close();
    for (asked, fill) in [0.1, 0.2, 0.3, 0.4].into_iter().enumerate() {
        leave(add_dora(&adapters, "a", fill), &gated, LOADS_MAX.min(asked + 1)).await;
    }
    assert_eq!(gated.inside_most.load(Ordering::SeqCst), LOADS_MAX, "the others wait");
    gated.open();
    // What nobody waits for gives its permit back, and adds nothing.
    let added = add_dora(&adapters, "b", 0.5).await;
    let listed = adapters.list(&tenant("acme")).await.expect("a list");
    assert_eq!(listed.iter().map(|one| one.digest).collect::<Vec<_>>(), [added]);
}

#[tokio::test]
async fn the_end_waits_for_what_has_begun() {
    let gated = GatedBase::new();
    let adapters = over_gated(&gated).await;
    let digest = add_dora(&adapters, "a", 0.1).await;
    let _opened = Opened(&gated);
    gated.close();
    leave(adapters.lease(&tenant("acme"), digest), &gated, 1).await;
    assert!(tokio::time::timeout(A_MOMENT, adapters.close()).await.is_err(), "it waits");
    gated.open();
    adapters.close().await;
    assert_eq!(gated.inside.load(Ordering::SeqCst), 0);
    assert_eq!(adapters.memory.residency(&(Some(tenant("acme")), digest)), Residency::Memory);
}

#[tokio::test]
async fn what_is_removed_while_it_is_loaded_is_not_kept() {
    let gated = GatedBase::new();
    let adapters = over_gated(&gated).await;
    let removed = add_dora(&adapters, "removed", 0.1).await;
    let again = add_dora(&adapters, "again", 0.2).await;
    let _opened = Opened(&gated);
    gated.close();
    for (name, digest, inside) in [("removed", removed, 1), ("again", again, 2)] {
        leave(adapters.lease(&tenant("acme"), digest), &gated, inside).await;
        adapters.remove(&tenant("acme"), &alias(name)).await.expect("removed");
    }
    // Whoever began before the removal may wait for it still.
    let resolved = ResolvedAdapters {
        tenant: tenant("acme"),
        digests: [("again".into(), again)].into(),
        owners: [].into(),
        bytes: [].into(),
    };
    let (lease, ()) = tokio::join!(adapters.lease_resolved(&resolved, again, ReleasePolicy::Lru), async {
        tokio::time::sleep(A_MOMENT).await;
        gated.open();
    });
    assert_eq!(lease.expect("a lease").digest(), again);
    adapters.close().await;
    assert_eq!(adapters.memory.residency(&(Some(tenant("acme")), removed)), Residency::Storage);
    assert_eq!(adapters.memory.residency(&(Some(tenant("acme")), again)), Residency::Memory);
}

#[tokio::test]
async fn what_is_removed_while_it_is_packed_is_not_kept_on_disk() {
    let gated = GatedBase::new();
    let folder = tempfile::tempdir().expect("a folder");
    let disk = AdapterDisk { folder: folder.path().to_owned(), bytes_max: 1 << 20, base: Digest::of(b"base") };
    let base = Arc::clone(&gated);
    let adapters = over(Arc::new(MemoryStore::default()), |config| {
        (config.base, config.disk) = (base, Some(disk));
    })
    .await;
    let (removed, stays) = (add_dora(&adapters, "removed", 0.1).await, add_dora(&adapters, "stays", 0.2).await);
    let _opened = Opened(&gated);
    gated.close();
    leave(adapters.lease(&tenant("acme"), removed), &gated, 1).await;
    leave(adapters.lease(&tenant("acme"), stays), &gated, 2).await;
    adapters.remove(&tenant("acme"), &alias("removed")).await.expect("removed");
    gated.open();
    adapters.close().await;
    // The key, and one of the two.
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2);
    assert!(adapters.disk_stats().bytes > 0);
}
