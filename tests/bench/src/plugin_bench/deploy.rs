//! Uploads components and deploys functions over HTTP. Not here: what they are for.

use serde_json::{Value, json};

use crate::Outcome;
use crate::load::{Target, with_key};

/// Uploads a component and deploys it under a name, with what else its manifest says.
///
/// # Errors
/// If it is refused.
pub(super) async fn deploy(
    client: &reqwest::Client,
    target: &Target,
    name: &str,
    component: Vec<u8>,
    manifest: Value,
) -> Outcome {
    let request = client.post(format!("{}/v1/plugins", target.url)).header("content-type", "application/octet-stream");
    let uploaded = answer(with_key(request, target).body(component)).await?;
    let mut manifest = manifest;
    manifest["plugin"] = uploaded["digest"].clone();
    answer(with_key(client.put(format!("{}/v1/functions/{name}", target.url)), target).json(&manifest)).await?;
    Ok(())
}

/// Invokes a function that answers by itself.
///
/// # Errors
/// If it does not, or the answer is not of the router.
pub(super) async fn invoke(client: &reqwest::Client, target: &Target, name: &str) -> Outcome {
    let request = client.post(format!("{}/v1/functions/{name}/invoke", target.url));
    let told = answer(with_key(request, target).json(&json!({"input": "lorem ipsum"}))).await?;
    match told.to_string().contains("No skill fits") {
        true => Ok(()),
        false => Err(format!("{name} answers {told}").into()),
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Outcome<Value> {
    let answer = request.send().await?;
    let (status, url) = (answer.status(), answer.url().path().to_owned());
    let text = answer.text().await?;
    if !status.is_success() {
        return Err(format!("{url}: {status} {text}").into());
    }
    Ok(serde_json::from_str(&text)?)
}
