//! Key-value buckets as the harness has them, in the shape in which the SDK asks. Not here: limits.

use std::collections::BTreeMap;

use super::STATE;

/// What a bucket holds, each value with its version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    values: BTreeMap<String, (u64, Vec<u8>)>,
    last_version: u64,
}

impl Contents {
    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        self.last_version += 1;
        self.values.insert(key.to_owned(), (self.last_version, value.to_vec()));
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.values.get(key).map(|(_, value)| value.clone())
    }

    fn version(&self, key: &str) -> Option<u64> {
        self.values.get(key).map(|(version, _)| *version)
    }
}

/// The bucket of this name.
#[derive(Debug)]
pub(crate) struct Bucket(String);

/// The state of a key.
#[derive(Debug)]
pub(crate) struct Cas {
    bucket: String,
    key: String,
    version: std::cell::Cell<Option<u64>>,
}

fn with<T>(bucket: &str, work: impl FnOnce(&mut Contents) -> T) -> Result<T, String> {
    STATE.with_borrow_mut(|state| {
        let contents = state.buckets.get_mut(bucket).ok_or("denied: see the manifest's grants.kv")?;
        Ok(work(contents))
    })
}

pub(crate) fn open(name: &str) -> Result<Bucket, String> {
    with(name, |_| Bucket(name.to_owned()))
}

pub(crate) fn get(bucket: &Bucket, key: &str) -> Result<Option<Vec<u8>>, String> {
    with(&bucket.0, |contents| contents.get(key))
}

pub(crate) fn set(bucket: &Bucket, key: &str, value: &[u8]) -> Result<(), String> {
    with(&bucket.0, |contents| contents.put(key, value))
}

pub(crate) fn delete(bucket: &Bucket, key: &str) -> Result<(), String> {
    with(&bucket.0, |contents| drop(contents.values.remove(key)))
}

pub(crate) fn keys(bucket: &Bucket, _: Option<&str>) -> Result<(Vec<String>, Option<String>), String> {
    with(&bucket.0, |contents| (contents.values.keys().cloned().collect(), None))
}

pub(crate) fn increment(bucket: &Bucket, key: &str, delta: i64) -> Result<i64, String> {
    with(&bucket.0, |contents| {
        let number = match contents.get(key) {
            None => 0,
            Some(value) => String::from_utf8_lossy(&value).parse::<i64>().map_err(|_| "the value is no number")?,
        };
        let sum = number.checked_add(delta).ok_or("the sum has over 64 bits")?;
        contents.put(key, sum.to_string().as_bytes());
        Ok(sum)
    })?
}

pub(crate) fn cas(bucket: &Bucket, key: &str) -> Result<Cas, String> {
    let version = with(&bucket.0, |contents| contents.version(key))?.into();
    Ok(Cas { bucket: bucket.0.clone(), key: key.to_owned(), version })
}

pub(crate) fn current(cas: &Cas) -> Result<Option<Vec<u8>>, String> {
    with(&cas.bucket, |contents| {
        cas.version.set(contents.version(&cas.key));
        contents.get(&cas.key)
    })
}

pub(crate) fn swap(cas: Cas, value: &[u8]) -> Result<Result<(), Cas>, String> {
    let bucket = cas.bucket.clone();
    with(&bucket, |contents| {
        if contents.version(&cas.key) != cas.version.get() {
            cas.version.set(contents.version(&cas.key));
            return Err(cas);
        }
        contents.put(&cas.key, value);
        Ok(())
    })
}
