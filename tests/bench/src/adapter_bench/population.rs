//! Registers adapters over HTTP and has each packed by a first use. Not here: measuring them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use model::Base;
use serde_json::json;

use super::traffic::touch;
use crate::adapters::{Form, RandomAdapter};
use crate::files::files;
use crate::load::{Http, upload_request};
use crate::process::{Server, alias};
use crate::report::{Report, rounded};
use crate::{Given, Outcome, progress};

/// Disk for packed adapters: room for all.
pub(super) const DISK_BYTES_MAX: u64 = 32 << 30;
/// Ranks, in turn.
const RANKS: [usize; 2] = [8, 16];
/// Uploads at once: as many as the host works on, and the next ones on their way.
const UPLOADS: usize = 4;
/// First uses at once.
const TOUCHES: usize = 16;
/// After the last first use the last packed file is written within this time.
const PACKED_MAX: Duration = Duration::from_secs(60);

/// Registered adapters, packed on disk, and where a server finds them.
pub(super) struct Population {
    program: PathBuf,
    base: PathBuf,
    pub(super) data: PathBuf,
    pub(super) adapters: usize,
    threads: usize,
    /// Of all packed files.
    pub(super) packed_bytes: u64,
}

impl Population {
    /// Makes adapters 0, 1, … of rank 8 and 16 in turn, on queries and values; registers them; uses each once.
    ///
    /// # Errors
    /// If one is refused, or is not packed in the end.
    pub(super) fn build(
        given: &Given,
        http: &Http,
        base: &Base,
        data: &Path,
        (adapters, threads): (usize, usize),
        report: &mut Report,
    ) -> Outcome<Self> {
        let (program, base_file) = (given.tenon.clone(), given.base.clone());
        let mut all = Self { program, base: base_file, data: data.to_path_buf(), adapters, threads, packed_bytes: 0 };
        // Little memory: what is packed shall lie on the disk only.
        let server = all.start(http, 64 << 20, DISK_BYTES_MAX)?;
        let started = Instant::now();
        all.register(http, base, &server)?;
        let registered = started.elapsed();
        let started = Instant::now();
        touch(http, &server.target, (0..adapters).collect(), TOUCHES, "packed")?;
        let packed = all.wait_until_packed()?;
        all.packed_bytes = packed.iter().map(|(_, bytes)| bytes).sum();
        let sent: u64 = files(&data.join("blobs"))?.iter().map(|(_, bytes)| bytes).sum();
        report.row(json!({"adapters": adapters, "ranks": RANKS, "modules": ["q_proj", "v_proj"],
            "stored_mb": rounded(sent as f64 / 1e6), "packed_mb": rounded(all.packed_bytes as f64 / 1e6),
            "registered_in_s": rounded(registered.as_secs_f64()), "used_once_in_s": rounded(started.elapsed().as_secs_f64())}));
        server.stop()?;
        Ok(all)
    }

    /// A server on these adapters, with none of them in memory.
    ///
    /// # Errors
    /// If it does not come up.
    pub(super) fn start(&self, http: &Http, memory_bytes_max: u64, disk_bytes_max: u64) -> Outcome<Server> {
        let settings = [
            ("THREADS", self.threads.to_string()),
            ("ADAPTER_CACHE_BYTES_MAX", memory_bytes_max.to_string()),
            ("ADAPTER_DISK_BYTES_MAX", disk_bytes_max.to_string()),
        ];
        Server::tenon_on(http, &self.program, &self.base, &self.data, &settings)
    }

    fn register(&self, http: &Http, base: &Base, server: &Server) -> Outcome {
        let (runtime, client) = http.parts();
        let bar = progress::bar(self.adapters, "registered");
        let uploads = (0..self.adapters).map(|number| {
            let bar = &bar;
            async move {
                let rank = RANKS.get(number % RANKS.len()).copied().unwrap_or_default();
                let adapter = RandomAdapter::of(number as u64, base.config(), Form::queries_and_values(rank));
                let (config, weights) = (adapter.peft_config(), adapter.peft_weights());
                let answer = upload_request(client, &server.target, &alias(number), config, weights).send().await?;
                let status = answer.status();
                if !status.is_success() {
                    return Err(format!("adapter {number}: {status} {}", answer.text().await?).into());
                }
                bar.inc(1);
                Outcome::Ok(())
            }
        });
        runtime.block_on(async {
            let mut uploads = futures::stream::iter(uploads).buffer_unordered(UPLOADS);
            while let Some(done) = uploads.next().await {
                done?;
            }
            Ok(())
        })
    }

    /// The packed files, once there is one for each adapter: they are written after they were used.
    fn wait_until_packed(&self) -> Outcome<Vec<(PathBuf, u64)>> {
        let started = Instant::now();
        loop {
            let mut packed = files(&self.data.join("packed-adapters"))?;
            packed.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "packed"));
            if packed.len() == self.adapters {
                return Ok(packed);
            }
            if started.elapsed() > PACKED_MAX {
                return Err(format!("{} of {} adapters were packed", packed.len(), self.adapters).into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
