//! Plays a recording again: the plugin, or another one, in the same sandbox, with every question answered from the recording
//! (`replay/answers.rs`). What it does is recorded in its turn, and the two are compared. Not here: where a recording and a
//! component come from.

mod answers;
mod compare;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use types::Digest;

use crate::bindings::tenon::plugin::types as wit;
use crate::compile::Uploaded;
use crate::record::Recording;
use crate::{OwnLimits, PluginError, PluginHost, PluginInstance, Recorder, Session};
use answers::Script;
pub use compare::Difference;
use sessions::ScriptedGenerations;

/// Bytes of the recording that a replay makes.
const BYTES_MAX: usize = 256 << 20;

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The component that was played.
    pub plugin: Digest,
    /// What it did, as a recording.
    pub played: Recording,
    /// Where it first did another thing than is recorded; none if it never did.
    pub difference: Option<Difference>,
}

impl PluginHost {
    /// Plays a recording with a component. The host should have been made with [`Recording::limits`]. Of secrets, a value that is
    /// given here is what the plugin reads; of the others it reads what stands for them in the recording.
    ///
    /// # Errors
    /// If the component is refused, or there is no instance to be had; what the guest runs into is part of the replay.
    pub async fn replay(
        &self,
        component: Bytes,
        recording: &Recording,
        secrets: BTreeMap<String, String>,
    ) -> Result<Replay, PluginError> {
        let plugin = self.admit(component.clone()).await?;
        let recorder = Recorder::to_read(recording.head.clone(), BYTES_MAX);
        let script = Arc::new(Script::new(recording, recorder.clone(), secrets));
        let session = Session {
            catalog: Arc::clone(&script) as _,
            log: Arc::clone(&script) as _,
            clock: Arc::clone(&script) as _,
            config: recording.given.config.clone(),
            keyvalue: Arc::clone(&script) as _,
            secrets: Arc::clone(&script) as _,
            outbound: Arc::clone(&script) as _,
            functions: Arc::clone(&script) as _,
            tools: Arc::clone(&script) as _,
            generations: Arc::new(ScriptedGenerations(Arc::clone(&script))),
            output: Arc::clone(&script) as _,
            tokenizer: script,
            limits: OwnLimits::default(),
            seed: recording.given.seed,
            record: Some(recorder.clone()),
        };
        match self.start(plugin, &Uploaded(component, None), session).await {
            Ok(mut instance) => play(&mut instance, recording).await?,
            Err(error @ (PluginError::Busy { .. } | PluginError::Internal(_))) => return Err(error),
            // It is in what was played.
            Err(_) => {}
        }
        let text = recorder.text();
        let mut read = Recording::read_all(&text).map_err(|error| PluginError::Internal(error.to_string()))?;
        let played = read.pop().ok_or_else(|| PluginError::Internal("nothing was played".to_owned()))?;
        let difference = compare::first(recording, &played);
        Ok(Replay { plugin, played, difference })
    }
}

/// Calls the guest as the host would, with the arguments that are recorded. A guest that decides otherwise is followed as far as
/// no generation is needed: that is the model's, and it is not here.
async fn play(instance: &mut PluginInstance, recording: &Recording) -> Result<(), PluginError> {
    let agent_s = argument::<wit::Request>(recording, "run", "request")?;
    // A component of the other world cannot be called as the recorded one was: it does nothing.
    if instance.is_agent() != agent_s.is_some() {
        return Ok(());
    }
    if let Some(request) = agent_s {
        let call = instance.run("run", move |guest| Box::pin(async move { guest.run(&request).await }));
        let _what_came_is_recorded = call.await;
        return Ok(());
    }
    let Some(request) = argument::<wit::Request>(recording, "route", "request")? else { return Ok(()) };
    let asked = request.clone();
    let routed = instance.run("route", move |guest| Box::pin(async move { guest.route(&asked).await })).await;
    let Ok(wit::Decision::Serve) = routed else { return Ok(()) };
    let asked = argument::<wit::Request>(recording, "compose", "request")?.unwrap_or(request);
    let plan = instance.run("compose", move |guest| Box::pin(async move { guest.compose(&asked).await })).await;
    if !plan.is_ok_and(|plan| plan.post_process) {
        return Ok(());
    }
    for (name, arguments) in recording.calls() {
        let went = match name {
            "post-processor" => {
                let request: wit::Request = read(arguments, "request")?;
                let call = instance.run("post-processor", move |guest| {
                    Box::pin(async move { guest.open_post_processor(&request).await })
                });
                call.await.is_ok()
            }
            "post-processor.chunk" => {
                let chunk: wit::Chunk = read(arguments, "chunk")?;
                let call = instance
                    .run("post-processor.chunk", move |guest| Box::pin(async move { guest.chunk(&chunk).await }));
                call.await.is_ok()
            }
            "post-processor.finish" => {
                let usage: wit::Usage = read(arguments, "usage")?;
                instance.run("post-processor.finish", move |guest| Box::pin(guest.finish(usage))).await.is_ok()
            }
            _ => true,
        };
        if !went {
            break;
        }
    }
    Ok(())
}

/// What the first call of this name was given.
fn argument<T: DeserializeOwned>(recording: &Recording, call: &str, name: &str) -> Result<Option<T>, PluginError> {
    let found = recording.calls().find(|(found, _)| *found == call);
    found.map(|(_, arguments)| read(arguments, name)).transpose()
}

fn read<T: DeserializeOwned>(arguments: &Value, name: &str) -> Result<T, PluginError> {
    let value = arguments.get(name).cloned().unwrap_or_default();
    let broken = |error| PluginError::Internal(format!("the recording's argument `{name}` is not understood: {error}"));
    serde_json::from_value(value).map_err(broken)
}
