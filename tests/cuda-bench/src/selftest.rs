//! The self-test's table: every kernel against its reference on this device. Not here: the cases (`kernels::cuda::selftest`).

use kernels::cuda::{Device, selftest};
use serde_json::json;

use crate::record::{Bound, Record};
use crate::{Given, Outcome};

/// In a tiny run: enough to see that the table arrives.
const TINY: &str = "rms_norm";

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let device = Device::open(0)?;
    let filter = if given.tiny { TINY } else { "" };
    let results = selftest::run(&device, 0..1, filter, &mut std::io::stderr())?;
    for result in &results {
        let (error, why) = match &result.error {
            Ok(error) => (Some(*error), None),
            Err(why) => (None, Some(why.to_string())),
        };
        record.quiet_row(&json!({
            "op": result.op, "case": result.case, "error": error, "tolerance": result.tolerance, "ok": result.is_ok(),
            "why": why,
        }));
    }
    let missed = results.iter().filter(|result| !result.is_ok()).count();
    record.row(&json!({"cell": "all", "cases": results.len(), "missed": missed}));
    if results.is_empty() {
        return Err("there are no cases".into());
    }
    record.verdict("selftest: cases beyond their tolerance", Bound::AtMost(0.0), missed as f64);
    Ok(())
}
