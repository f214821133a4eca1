//! Key-value buckets that the manifest grants (`grants.kv`). Natively they are the harness's. Not here: their limits, which the host
//! has.

use crate::{Error, Result};

/// Times that [`Bucket::update`] tries again because someone came between.
const UPDATE_ATTEMPTS_MAX: u32 = 16;

/// An open bucket.
#[derive(Debug)]
pub struct Bucket(sys::Bucket);

/// A key's state, to be swapped against.
#[derive(Debug)]
pub struct Snapshot {
    cas: sys::Cas,
    value: Option<Vec<u8>>,
}

impl Snapshot {
    /// The value that the key had.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }
}

impl Bucket {
    /// The bucket of this name.
    pub fn open(name: &str) -> Result<Self> {
        sys::open(name).map(Self).map_err(|error| Error(format!("the bucket `{name}`: {error}")))
    }

    /// The value of a key, if it has one.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(sys::get(&self.0, key)?)
    }

    /// The same as text.
    pub fn get_text(&self, key: &str) -> Result<Option<String>> {
        let text = |value| String::from_utf8(value).map_err(|_| Error(format!("the value of `{key}` is no text")));
        self.get(key)?.map(text).transpose()
    }

    /// Gives a key a value.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        Ok(sys::set(&self.0, key, value)?)
    }

    /// Takes the value away, if there is one.
    pub fn delete(&self, key: &str) -> Result<()> {
        Ok(sys::delete(&self.0, key)?)
    }

    /// Every key, in order of their bytes.
    pub fn keys(&self) -> Result<Vec<String>> {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let (page, next) = sys::keys(&self.0, cursor.as_deref())?;
            keys.extend(page);
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(keys),
            }
        }
    }

    /// Adds to a number, which is 0 before; what it is then.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64> {
        Ok(sys::increment(&self.0, key, delta)?)
    }

    /// A key's state now.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot> {
        let cas = sys::cas(&self.0, key)?;
        let value = sys::current(&cas)?;
        Ok(Snapshot { cas, value })
    }

    /// Gives the key of a snapshot a value if it is still in that state; if not, the state that it is in.
    pub fn swap(&self, snapshot: Snapshot, value: &[u8]) -> Result<std::result::Result<(), Snapshot>> {
        match sys::swap(snapshot.cas, value)? {
            Ok(()) => Ok(Ok(())),
            Err(cas) => {
                let value = sys::current(&cas)?;
                Ok(Err(Snapshot { cas, value }))
            }
        }
    }

    /// Changes a value by what it was, again and again until nobody came between; what it is then.
    pub fn update(&self, key: &str, mut change: impl FnMut(Option<&[u8]>) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mut snapshot = self.snapshot(key)?;
        for _ in 0..UPDATE_ATTEMPTS_MAX {
            let value = change(snapshot.value())?;
            match self.swap(snapshot, &value)? {
                Ok(()) => return Ok(value),
                Err(newer) => snapshot = newer,
            }
        }
        Err(Error(format!("others change `{key}` all the time")))
    }
}

#[cfg(not(target_arch = "wasm32"))]
use crate::testing::buckets as sys;

#[cfg(target_arch = "wasm32")]
mod sys {
    use crate::bindings::wasi::keyvalue::{atomics, store};
    pub(super) use atomics::Cas;
    pub(super) use store::Bucket;

    fn told(error: store::Error) -> String {
        match error {
            store::Error::NoSuchStore => "there is none".to_owned(),
            store::Error::AccessDenied => "denied: see the manifest's grants.kv".to_owned(),
            store::Error::Other(reason) => reason,
        }
    }

    pub(super) fn open(name: &str) -> Result<Bucket, String> {
        store::open(name).map_err(told)
    }

    pub(super) fn get(bucket: &Bucket, key: &str) -> Result<Option<Vec<u8>>, String> {
        bucket.get(key).map_err(told)
    }

    pub(super) fn set(bucket: &Bucket, key: &str, value: &[u8]) -> Result<(), String> {
        bucket.set(key, value).map_err(told)
    }

    pub(super) fn delete(bucket: &Bucket, key: &str) -> Result<(), String> {
        bucket.delete(key).map_err(told)
    }

    pub(super) fn keys(bucket: &Bucket, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), String> {
        let page = bucket.list_keys(cursor).map_err(told)?;
        Ok((page.keys, page.cursor))
    }

    pub(super) fn increment(bucket: &Bucket, key: &str, delta: i64) -> Result<i64, String> {
        atomics::increment(bucket, key, delta).map_err(told)
    }

    pub(super) fn cas(bucket: &Bucket, key: &str) -> Result<Cas, String> {
        Cas::new(bucket, key).map_err(told)
    }

    pub(super) fn current(cas: &Cas) -> Result<Option<Vec<u8>>, String> {
        cas.current().map_err(told)
    }

    pub(super) fn swap(cas: Cas, value: &[u8]) -> Result<Result<(), Cas>, String> {
        match atomics::swap(cas, value) {
            Ok(()) => Ok(Ok(())),
            Err(atomics::CasError::CasFailed(cas)) => Ok(Err(cas)),
            Err(atomics::CasError::StoreError(error)) => Err(told(error)),
        }
    }
}
