//! `wasi:keyvalue`: buckets that the manifest grants. A refusal says in the interface's own words that access is denied, and in
//! the function's log which grant is missing. Not here: where the buckets lie.

use bytes::Bytes;
use wasmtime::component::Resource;

use crate::bindings::standard::wasi::keyvalue::{atomics, batch, store};
use crate::state::InstanceState;
use crate::{BucketAccess, CapabilityError, Expected, LogLevel, Versioned, Written};
use atomics::CasError;
use store::{Error, KeyResponse};

/// Characters of a name that a log line quotes.
const NAME_CHARS_MAX: usize = 96;
/// Times that an increment is tried again because someone came between.
const INCREMENT_ATTEMPTS_MAX: u32 = 16;

/// An open bucket.
#[derive(Clone, Debug)]
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub struct Bucket {
    name: String,
    access: BucketAccess,
}

/// The state of a key. It holds no value: a guest may have many of these.
#[derive(Clone, Debug)]
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub struct Cas {
    bucket: Bucket,
    key: String,
    version: Option<u64>,
}

impl store::Host for InstanceState {
    async fn open(&mut self, identifier: String) -> wasmtime::Result<Result<Resource<Bucket>, Error>> {
        self.count_host_call()?;
        let Some(access) = self.session.keyvalue.access(&identifier) else {
            let name: String = identifier.chars().take(NAME_CHARS_MAX).collect();
            let line = format!("the bucket `{name}` is denied: the manifest's grants.kv does not name it");
            self.log_line(LogLevel::Warn, &line);
            return Ok(Err(Error::AccessDenied));
        };
        Ok(Ok(self.table().push(Bucket { name: identifier, access })?))
    }
}

impl store::HostBucket for InstanceState {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.read(&bucket, &key).await.map(|found| found.map(|found| found.value.to_vec())))
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.write(&bucket, &key, Expected::Any, Some(value.into())).await.map(drop))
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.write(&bucket, &key, Expected::Any, None).await.map(drop))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<bool, Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.read(&bucket, &key).await.map(|found| found.is_some()))
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<KeyResponse, Error>> {
        let bucket = self.bucket(&bucket)?;
        let page = self.session.keyvalue.keys(&bucket.name, cursor.as_deref()).await;
        Ok(page.map_err(told).map(|page| {
            let cursor = page.keys.last().filter(|_| page.has_more).cloned();
            KeyResponse { keys: page.keys, cursor }
        }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table().delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for InstanceState {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, Error>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.added(&bucket, &key, delta).await)
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), CasError>> {
        self.count_host_call()?;
        let cas = self.table().delete(cas)?;
        let expected = cas.version.map_or(Expected::Absent, Expected::Version);
        match self.write(&cas.bucket, &cas.key, expected, Some(value.into())).await {
            Ok(Written::Done(_)) => Ok(Ok(())),
            Ok(Written::Changed(version)) => {
                let renewed = self.table().push(Cas { version, ..cas })?;
                Ok(Err(CasError::CasFailed(renewed)))
            }
            Err(error) => Ok(Err(CasError::StoreError(error))),
        }
    }
}

impl atomics::HostCas for InstanceState {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Resource<Cas>, Error>> {
        let bucket = self.bucket(&bucket)?;
        match self.read(&bucket, &key).await {
            Ok(found) => Ok(Ok(self.table().push(Cas { bucket, key, version: found.map(|found| found.version) })?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn current(&mut self, handle: Resource<Cas>) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        self.count_host_call()?;
        let Cas { bucket, key, .. } = self.table().get(&handle)?.clone();
        match self.read(&bucket, &key).await {
            Ok(found) => {
                self.table().get_mut(&handle)?.version = found.as_ref().map(|found| found.version);
                Ok(Ok(found.map(|found| found.value.to_vec())))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table().delete(cas)?;
        Ok(())
    }
}

impl batch::Host for InstanceState {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<Option<(String, Vec<u8>)>>, Error>> {
        let bucket = self.bucket(&bucket)?;
        let (mut found, mut bytes) = (Vec::new(), 0_usize);
        for key in keys {
            self.count_host_call()?;
            let value = match self.read(&bucket, &key).await {
                Ok(value) => value,
                Err(error) => return Ok(Err(error)),
            };
            bytes = bytes.saturating_add(value.as_ref().map_or(0, |value| value.value.len()));
            if bytes > self.limits.transfer_bytes_max {
                let limit = format!("transfer_bytes_max of {} bytes in one answer", self.limits.transfer_bytes_max);
                return Ok(Err(told(CapabilityError::Limit(limit))));
            }
            found.push(value.map(|value| (key, value.value.to_vec())));
        }
        Ok(Ok(found))
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        for (key, value) in key_values {
            self.count_host_call()?;
            if let Err(error) = self.write(&bucket, &key, Expected::Any, Some(value.into())).await {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bucket = self.bucket(&bucket)?;
        for key in keys {
            self.count_host_call()?;
            if let Err(error) = self.write(&bucket, &key, Expected::Any, None).await {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

impl InstanceState {
    /// Counts the call; each one of a bucket begins with it.
    fn bucket(&mut self, bucket: &Resource<Bucket>) -> wasmtime::Result<Bucket> {
        self.count_host_call()?;
        Ok(self.table().get(bucket)?.clone())
    }

    async fn read(&mut self, bucket: &Bucket, key: &str) -> Result<Option<Versioned>, Error> {
        self.session.keyvalue.get(&bucket.name, key).await.map_err(told)
    }

    async fn write(
        &mut self,
        bucket: &Bucket,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, Error> {
        if bucket.access == BucketAccess::ReadOnly {
            let line =
                format!("a write to the bucket `{}` is denied: the manifest's grants.kv lets it be read", bucket.name);
            self.log_line(LogLevel::Warn, &line);
            return Err(Error::AccessDenied);
        }
        let Some(left) = self.kv_writes_left.checked_sub(1) else {
            let limit = format!("kv_writes_max of {} writes in one request", self.limits.kv_writes_max);
            return Err(told(CapabilityError::Limit(limit)));
        };
        self.kv_writes_left = left;
        self.session.keyvalue.write(&bucket.name, key, expected, value).await.map_err(told)
    }

    /// The number is kept as decimal text.
    async fn added(&mut self, bucket: &Bucket, key: &str, delta: i64) -> Result<i64, Error> {
        for _ in 0..INCREMENT_ATTEMPTS_MAX {
            let found = self.read(bucket, key).await?;
            let (number, expected) = match &found {
                None => (Some(0), Expected::Absent),
                Some(found) => (number(&found.value), Expected::Version(found.version)),
            };
            let number = number.ok_or_else(|| Error::Other("the value is no number".to_owned()))?;
            let sum = number.checked_add(delta).ok_or_else(|| Error::Other("the sum has over 64 bits".to_owned()))?;
            match self.write(bucket, key, expected, Some(sum.to_string().into())).await? {
                Written::Done(_) => return Ok(sum),
                Written::Changed(_) => {}
            }
        }
        Err(Error::Other("others change the value all the time; try again".to_owned()))
    }
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn told(error: CapabilityError) -> Error {
    match error {
        CapabilityError::Denied(_) => Error::AccessDenied,
        other => Error::Other(other.to_string()),
    }
}
