//! Key-value buckets of tenants and of their functions, in tables of the state's database. Not here: who may use which bucket, which
//! the manifest says, and the routes.
//!
//! A write is one transaction: the value, and what its bucket and tenant hold in all. Each write takes the next number of the whole
//! table as the value's version, so that no two states of a key share one, not even across a removal.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use plugin::Turns;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction};
use tokio::runtime::Handle;
use types::{Blame, BucketName, FunctionName, TenantId};

use crate::store::{StateDatabase, StoreError};

/// What an entry takes beside its key and its value: names, version, its place in the tree.
const ENTRY_BYTES: usize = 128;
/// Keys that one transaction removes: receipts wait for it.
const REMOVED_AT_ONCE_MAX: u64 = 1000;

/// Tenant, scope, bucket, key. The scope is empty, or `FUNCTION/LIFE`.
type ValueKey<'a> = (&'a str, &'a str, &'a str, &'a str);

/// To version and value.
const VALUES: TableDefinition<'_, ValueKey<'_>, (u64, &[u8])> = TableDefinition::new("kv_values");
/// (tenant, scope, bucket) -> (keys, bytes that its entries count for).
const BUCKETS: TableDefinition<'_, (&str, &str, &str), (u64, u64)> = TableDefinition::new("kv_buckets");
/// tenant -> (buckets, bytes that all their entries count for).
const TENANTS: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("kv_tenants");
/// The last version that was given out.
const LAST_VERSION: TableDefinition<'_, (), u64> = TableDefinition::new("kv_version");

/// What buckets may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValueLimits {
    /// Bytes of a key.
    pub key_bytes_max: usize,
    /// Bytes of a value.
    pub value_bytes_max: usize,
    /// Keys of a bucket.
    pub bucket_keys_max: u64,
    /// Buckets of a tenant, its functions' included.
    pub tenant_buckets_max: u64,
    /// Bytes of all keys and values of a tenant, and 128 for each entry.
    pub tenant_bytes_max: u64,
    /// Keys of one listing.
    pub page_keys_max: usize,
}

impl Default for KeyValueLimits {
    fn default() -> Self {
        Self {
            key_bytes_max: 512,
            value_bytes_max: 1 << 20,
            bucket_keys_max: 100_000,
            tenant_buckets_max: 10_000,
            tenant_bytes_max: 256 << 20,
            page_keys_max: 1000,
        }
    }
}

/// Why something about buckets failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyValueError {
    /// No such key, or not this tenant's.
    #[error("there is no such key in the bucket `{0}`")]
    NotFound(BucketName),
    /// A key that cannot be.
    #[error("a key has at least one character, and no NUL")]
    BadKey,
    /// The key is not in the state that was expected.
    #[error("the key was changed by someone else; read it again and retry")]
    Conflict,
    /// Over a limit.
    #[error("{what} is over the limit {limit} of {max}")]
    OverLimit {
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: u64,
    },
    /// A request of a function that was deleted meanwhile.
    #[error("the function was deleted, and its buckets with it")]
    Gone,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyValueError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "kv_key_not_found",
            Self::BadKey => "invalid_request",
            Self::Conflict => "conflict",
            Self::Gone => "function_not_found",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound(_) | Self::BadKey | Self::Conflict | Self::Gone | Self::OverLimit { .. } => Blame::Caller,
            Self::Store(error) => error.blame(),
        }
    }
}

/// Which bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketPlace {
    tenant: TenantId,
    scope: String,
    bucket: BucketName,
}

impl BucketPlace {
    /// The tenant's own bucket.
    #[must_use]
    pub const fn of_tenant(tenant: TenantId, bucket: BucketName) -> Self {
        Self { tenant, scope: String::new(), bucket }
    }

    /// A function's bucket, in this life of the function: a successor of the same name has another.
    #[must_use]
    pub fn of_function(tenant: TenantId, function: &FunctionName, life: u32, bucket: BucketName) -> Self {
        Self { tenant, scope: format!("{function}/{life}"), bucket }
    }

    fn key<'a>(&'a self, key: &'a str) -> ValueKey<'a> {
        (self.tenant.as_str(), &self.scope, self.bucket.as_str(), key)
    }

    fn name(&self) -> (&str, &str, &str) {
        (self.tenant.as_str(), &self.scope, self.bucket.as_str())
    }

    /// Whether it belongs to a life of a function that is over.
    fn is_of(&self, gone: &HashMap<(TenantId, FunctionName), u32>) -> bool {
        let own =
            self.scope.split_once('/').and_then(|(name, life)| Some((name.parse().ok()?, life.parse::<u32>().ok()?)));
        own.is_some_and(|(name, life)| gone.get(&(self.tenant.clone(), name)).is_some_and(|next| life < *next))
    }
}

/// A bucket in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its name.
    pub bucket: String,
    /// Whose it is, if it is a function's.
    pub function: Option<String>,
    /// How many keys it has.
    pub keys: u64,
    /// Bytes of them and their values.
    pub bytes: u64,
}

/// The buckets of all tenants.
#[derive(Clone, Debug)]
pub struct KeyValues {
    database: Arc<StateDatabase>,
    limits: KeyValueLimits,
    /// At writing: the database has one place for a writer, for which receipts wait too, and no order among who waits. So of all
    /// buckets' writes one is there, and tenants take turns.
    turns: Arc<Turns>,
    /// Functions that were deleted, with the life that a successor of each begins: requests of theirs that run still write nothing
    /// more. Not kept: no request outlives the host.
    gone: Arc<Mutex<HashMap<(TenantId, FunctionName), u32>>>,
    /// The host's threads, if it was opened on them: those of a guest's runtime have low priority, and a write of theirs would
    /// hold the database's one place while receipts wait for it.
    runtime: Option<Handle>,
}

pub use plugin::{Expected, KeyPage, Versioned, Written};

type Answer<T> = Result<T, KeyValueError>;
/// What a transaction found out, or why it could not.
type Attempt<T> = Result<Answer<T>, redb::Error>;

impl KeyValues {
    /// In a database.
    #[must_use]
    pub fn new(database: Arc<StateDatabase>, limits: KeyValueLimits) -> Self {
        let (turns, runtime) = (Arc::new(Turns::new(1, 1)), Handle::try_current().ok());
        Self { database, limits, turns, gone: Arc::default(), runtime }
    }

    /// A key's value.
    ///
    /// # Errors
    /// [`KeyValueError::BadKey`], [`KeyValueError::OverLimit`], [`KeyValueError::Store`].
    pub async fn get(&self, place: &BucketPlace, key: &str) -> Answer<Option<Versioned>> {
        self.check_key(key)?;
        let (place, key) = (place.clone(), key.to_owned());
        self.read(move |database| read_value(database, &place, &key).map(Ok)).await
    }

    /// Sets (`Some`) or removes (`None`) a value if the key is in the expected state. Durable when it returns.
    ///
    /// # Errors
    /// [`KeyValueError::BadKey`], [`KeyValueError::OverLimit`], [`KeyValueError::Store`].
    pub async fn write(
        &self,
        place: &BucketPlace,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Answer<Written> {
        self.check_key(key)?;
        let bytes = value.as_ref().map_or(0, Bytes::len);
        over("the value's length in bytes", bytes, "kv_value_bytes_max", self.limits.value_bytes_max)?;
        let (place, key, limits) = (place.clone(), key.to_owned(), self.limits);
        let is_new = value.is_some();
        let tenant = place.tenant.clone();
        let gone = Arc::clone(&self.gone);
        self.change(&tenant, is_new, move |transaction| {
            // In its turn: what removes a function's buckets waits for those who had theirs before.
            if is_new && place.is_of(&lock(&gone)) {
                return Ok(Err(KeyValueError::Gone));
            }
            write_value(transaction, limits, &place, &key, expected, value.as_deref())
        })
        .await
    }

    /// Keys that come after this one, in order of their bytes.
    ///
    /// # Errors
    /// [`KeyValueError::Store`].
    pub async fn keys(&self, place: &BucketPlace, after: Option<&str>, keys_max: usize) -> Answer<KeyPage> {
        let keys_max = keys_max.min(self.limits.page_keys_max);
        let (place, after) = (place.clone(), after.unwrap_or_default().to_owned());
        self.read(move |database| read_keys(database, &place, &after, keys_max).map(Ok)).await
    }

    /// The tenant's buckets, its functions' included.
    ///
    /// # Errors
    /// [`KeyValueError::Store`].
    pub async fn buckets(&self, tenant: &TenantId) -> Answer<Vec<BucketInfo>> {
        let tenant = tenant.clone();
        self.read(move |database| read_buckets(database, &tenant).map(Ok)).await
    }

    /// Removes a bucket with all that is in it; how many keys it had. Some at a time, so that others may write in between: what is
    /// written to it meanwhile may stay.
    ///
    /// # Errors
    /// [`KeyValueError::Store`].
    pub async fn remove_bucket(&self, place: &BucketPlace) -> Answer<u64> {
        let mut removed = 0;
        // A bucket that is filled as fast as it is emptied is left to its writers.
        for _ in 0..=self.limits.bucket_keys_max / REMOVED_AT_ONCE_MAX {
            let removed_from = place.clone();
            let remove = move |transaction: &WriteTransaction| remove_some(transaction, &removed_from).map(Ok);
            let some = self.change(&place.tenant, false, remove).await?;
            removed += some;
            if some < REMOVED_AT_ONCE_MAX {
                break;
            }
        }
        Ok(removed)
    }

    /// Removes every bucket of a function, of its lives before this one.
    ///
    /// # Errors
    /// [`KeyValueError::Store`].
    pub async fn remove_function(&self, tenant: &TenantId, function: &FunctionName, before: u32) -> Answer<()> {
        lock(&self.gone).insert((tenant.clone(), function.clone()), before);
        // Who writes at the moment may not have seen it; who comes after will.
        drop(self.turns.take(None).await);
        let (tenant, function) = (tenant.clone(), function.to_string());
        let places = self.read(move |database| read_own_scopes(database, &tenant, &function, before).map(Ok)).await?;
        for place in places {
            self.remove_bucket(&place).await?;
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Attempt<T> + Send + 'static) -> Answer<T> {
        let done = match &self.runtime {
            Some(runtime) => runtime.spawn_blocking(work).await,
            None => tokio::task::spawn_blocking(work).await,
        };
        let attempt = done.map_err(|error| StoreError::backend("read or write a key-value bucket", error))?;
        attempt.map_err(|error| StoreError::backend("read or write a key-value bucket", error))?
    }

    fn check_key(&self, key: &str) -> Answer<()> {
        if key.is_empty() || key.contains('\0') {
            return Err(KeyValueError::BadKey);
        }
        over("the key's length in bytes", key.len(), "kv_key_bytes_max", self.limits.key_bytes_max)
    }

    async fn read<T: Send + 'static>(&self, work: impl Fn(&Database) -> Attempt<T> + Send + 'static) -> Answer<T> {
        let database = Arc::clone(&self.database);
        self.blocking(move || database.read(work)).await
    }

    async fn change<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        is_new: bool,
        work: impl FnOnce(&WriteTransaction) -> Attempt<T> + Send + 'static,
    ) -> Answer<T> {
        let turn = self.turns.take(tenant).await;
        let turn = turn.map_err(|error| StoreError::backend("write a key-value bucket", error))?;
        let database = Arc::clone(&self.database);
        self.blocking(move || {
            // Until the write has ended, even if nobody waits for it any more.
            let _turn = turn;
            if is_new && let Err(full) = database.check_room() {
                return Ok(Err(full.into()));
            }
            database.write(|database| {
                let transaction = database.begin_write()?;
                let outcome = work(&transaction)?;
                // What was refused changed nothing.
                if outcome.is_ok() {
                    transaction.commit()?
                } else {
                    transaction.abort()?
                }
                Ok(outcome)
            })
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn over(what: &'static str, value: usize, limit: &'static str, max: usize) -> Answer<()> {
    if value <= max { Ok(()) } else { Err(KeyValueError::OverLimit { what, limit, max: max as u64 }) }
}

fn read_value(database: &Database, place: &BucketPlace, key: &str) -> Result<Option<Versioned>, redb::Error> {
    let values = match database.begin_read()?.open_table(VALUES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        values => values?,
    };
    let found = values.get(place.key(key))?;
    Ok(found.map(|found| {
        let (version, value) = found.value();
        Versioned { value: Bytes::copy_from_slice(value), version }
    }))
}

fn read_keys(database: &Database, place: &BucketPlace, after: &str, keys_max: usize) -> Result<KeyPage, redb::Error> {
    let values = match database.begin_read()?.open_table(VALUES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(KeyPage::default()),
        values => values?,
    };
    let mut page = KeyPage::default();
    for entry in values.range((Bound::Excluded(place.key(after)), Bound::Unbounded))? {
        let (found, _) = entry?;
        let (tenant, scope, bucket, key) = found.value();
        if (tenant, scope, bucket) != place.name() {
            break;
        }
        if page.keys.len() >= keys_max {
            page.has_more = true;
            break;
        }
        page.keys.push(key.to_owned());
    }
    Ok(page)
}

fn read_buckets(database: &Database, tenant: &TenantId) -> Result<Vec<BucketInfo>, redb::Error> {
    let buckets = match database.begin_read()?.open_table(BUCKETS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        buckets => buckets?,
    };
    let mut found = Vec::new();
    for entry in buckets.range((tenant.as_str(), "", "")..)? {
        let (name, counts) = entry?;
        let (owner, scope, bucket) = name.value();
        if owner != tenant.as_str() {
            break;
        }
        let function = scope.split_once('/').map(|(function, _)| function.to_owned());
        let (keys, bytes) = counts.value();
        found.push(BucketInfo { bucket: bucket.to_owned(), function, keys, bytes });
    }
    Ok(found)
}

fn read_own_scopes(
    database: &Database,
    tenant: &TenantId,
    function: &str,
    before: u32,
) -> Result<Vec<BucketPlace>, redb::Error> {
    let buckets = match database.begin_read()?.open_table(BUCKETS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        buckets => buckets?,
    };
    let first = format!("{function}/");
    let mut places = Vec::new();
    for entry in buckets.range((tenant.as_str(), first.as_str(), "")..)? {
        let (name, _) = entry?;
        let (owner, scope, bucket) = name.value();
        if owner != tenant.as_str() || !scope.starts_with(&first) {
            break;
        }
        let life = scope.strip_prefix(&first).and_then(|life| life.parse::<u32>().ok());
        if life.is_none_or(|life| life >= before) {
            continue;
        }
        // What was written passed as a name.
        let Ok(bucket) = bucket.parse() else { continue };
        places.push(BucketPlace { tenant: tenant.clone(), scope: scope.to_owned(), bucket });
    }
    Ok(places)
}

/// What an entry counts for.
const fn entry_bytes(key: &str, value: usize) -> u64 {
    (ENTRY_BYTES + key.len() + value) as u64
}

fn write_value(
    transaction: &WriteTransaction,
    limits: KeyValueLimits,
    place: &BucketPlace,
    key: &str,
    expected: Expected,
    value: Option<&[u8]>,
) -> Attempt<Written> {
    let mut values = transaction.open_table(VALUES)?;
    let old = values.get(place.key(key))?.map(|found| (found.value().0, found.value().1.len()));
    let version = old.map(|(version, _)| version);
    let is_expected = match expected {
        Expected::Any => true,
        Expected::Absent => version.is_none(),
        Expected::Version(expected) => version == Some(expected),
    };
    if !is_expected {
        return Ok(Ok(Written::Changed(version)));
    }
    let bytes = |value: usize| entry_bytes(key, value);
    let change = Change {
        keys_before: u64::from(old.is_some()),
        bytes_before: old.map_or(0, |(_, value)| bytes(value)),
        keys_after: u64::from(value.is_some()),
        bytes_after: value.map_or(0, |value| bytes(value.len())),
    };
    if let Err(error) = change.count(transaction, limits, place)? {
        return Ok(Err(error));
    }
    let Some(value) = value else {
        values.remove(place.key(key))?;
        return Ok(Ok(Written::Done(None)));
    };
    let mut last = transaction.open_table(LAST_VERSION)?;
    let version = last.get(())?.map_or(0, |last| last.value()) + 1;
    last.insert((), version)?;
    values.insert(place.key(key), (version, value))?;
    Ok(Ok(Written::Done(Some(version))))
}

/// The first keys of a bucket; how many were removed.
fn remove_some(transaction: &WriteTransaction, place: &BucketPlace) -> Result<u64, redb::Error> {
    let mut values = transaction.open_table(VALUES)?;
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for entry in values.range(place.key("")..)? {
        let (found, value) = entry?;
        let (tenant, scope, bucket, key) = found.value();
        if (tenant, scope, bucket) != place.name() || keys.len() as u64 >= REMOVED_AT_ONCE_MAX {
            break;
        }
        bytes += entry_bytes(key, value.value().1.len());
        keys.push(key.to_owned());
    }
    for key in &keys {
        values.remove(place.key(key))?;
    }
    let change = Change { keys_before: keys.len() as u64, bytes_before: bytes, keys_after: 0, bytes_after: 0 };
    // It only makes less, so no limit can be met.
    let _within = change.count(transaction, KeyValueLimits::default(), place)?;
    Ok(keys.len() as u64)
}

/// What a write does to what is held in all.
#[derive(Clone, Copy, Debug)]
struct Change {
    keys_before: u64,
    bytes_before: u64,
    keys_after: u64,
    bytes_after: u64,
}

impl Change {
    fn count(self, transaction: &WriteTransaction, limits: KeyValueLimits, place: &BucketPlace) -> Attempt<()> {
        let mut buckets = transaction.open_table(BUCKETS)?;
        let mut tenants = transaction.open_table(TENANTS)?;
        let held = buckets.get(place.name())?.map_or((0, 0), |held| held.value());
        let in_all = tenants.get(place.tenant.as_str())?.map_or((0, 0), |held| held.value());
        let after = |held: u64, before: u64, after: u64| held.saturating_sub(before).saturating_add(after);
        let keys = after(held.0, self.keys_before, self.keys_after);
        let bytes = after(held.1, self.bytes_before, self.bytes_after);
        let bytes_in_all = after(in_all.1, self.bytes_before, self.bytes_after);
        let bucket_count = after(in_all.0, u64::from(held.0 > 0), u64::from(keys > 0));
        let grows = self.bytes_after > self.bytes_before;
        for (what, value, before, limit, max) in [
            ("the number of keys in the bucket", keys, held.0, "kv_bucket_keys_max", limits.bucket_keys_max),
            ("the number of buckets", bucket_count, in_all.0, "kv_tenant_buckets_max", limits.tenant_buckets_max),
            (
                "what the tenant's buckets hold in bytes",
                bytes_in_all,
                in_all.1,
                "kv_tenant_bytes_max",
                limits.tenant_bytes_max,
            ),
        ] {
            if grows && value > max && value > before {
                return Ok(Err(KeyValueError::OverLimit { what, limit, max }));
            }
        }
        if keys > 0 {
            buckets.insert(place.name(), (keys, bytes))?;
        } else {
            buckets.remove(place.name())?;
        }
        tenants.insert(place.tenant.as_str(), (bucket_count, bytes_in_all))?;
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests;
