//! `ipfs://CID[/path]` through the configured gateway, which is not trusted: every block on the way is asked for as it is
//! (`?format=raw`) and hashed before a byte of it is used. Not here: requests.
//!
//! Read are raw blocks and UnixFS in dag-pb (<https://specs.ipfs.tech/unixfs/>): directories by name, files of one block or of a tree
//! of them. Hashes are SHA-256 and BLAKE3, and blocks that a CID holds itself. Sharded directories, symbolic links and
//! other codecs are refused by name.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cid::Cid;
use futures::future::try_join_all;
use prost::Message as _;
use reqwest::Url;
use sha2::{Digest as _, Sha256};
use types::Digest;

use super::download::Wanted;
use super::fetch::{RemoteFolder, Requests};
use super::guard::Guard;
use super::web::Target;
use super::{AdapterError, Credential, SourceError, SourcesConfig};

/// The largest block that peers exchange.
const BLOCK_BYTES_MAX: usize = 2 << 20;
/// Blocks of one file.
const BLOCKS_MAX: usize = 1 << 14;
/// Folders of a path.
const SEGMENTS_MAX: usize = 32;
/// Blocks of a file that are asked for at once.
const BLOCKS_AHEAD: usize = 4;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const IDENTITY: u64 = 0x00;
const SHA2_256: u64 = 0x12;
const BLAKE3: u64 = 0x1e;

const UNSUPPORTED: &str = "only CIDs of raw and dag-pb blocks with SHA-256 or BLAKE3 of 32 bytes are supported";

/// A node of dag-pb (<https://ipld.io/specs/codecs/dag-pb/spec/>).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DagNode {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(super) data: Option<Bytes>,
    #[prost(message, repeated, tag = "2")]
    pub(super) links: Vec<DagLink>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DagLink {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) hash: Bytes,
    #[prost(string, tag = "2")]
    pub(super) name: String,
}

/// The data of a node that is a file or a directory.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UnixFs {
    #[prost(uint64, tag = "1")]
    pub(super) kind: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) file_bytes: u64,
}

/// A block that is what its CID says, understood.
#[derive(Debug)]
enum Block {
    /// These bytes, then the blocks behind the links.
    File {
        data: Bytes,
        rest: Vec<Cid>,
        file_bytes: u64,
    },
    Directory(DagNode),
}

#[derive(Debug)]
pub(super) struct Folder {
    name: String,
    root: Cid,
    path: Vec<String>,
    /// Ends with `/ipfs/`.
    gateway: Url,
}

impl Folder {
    /// From what stands behind `ipfs://`. The path is taken as it is, without percent-encoding.
    pub(super) fn parse(
        rest: &str,
        config: &SourcesConfig,
        guard: &Guard,
        credential: Option<&Credential>,
    ) -> Result<Self, AdapterError> {
        let gateway = config.ipfs_gateway.clone();
        let mut gateway = gateway.ok_or(AdapterError::BadSource("this host has no `adapter_sources.ipfs_gateway`"))?;
        if credential.is_some() {
            return Err(AdapterError::BadSource("a secret is of no use for ipfs://; leave it out"));
        }
        let bad = || AdapterError::BadSource("use ipfs://CID/path, without a query");
        let mut segments = rest.trim_end_matches('/').split('/');
        let root = segments.next().unwrap_or_default();
        let root = Cid::try_from(root).map_err(|_| AdapterError::BadSource("what follows ipfs:// is no CID"))?;
        if !is_supported(&root) {
            return Err(AdapterError::BadSource(UNSUPPORTED));
        }
        let path: Vec<_> = segments.map(str::to_owned).collect();
        let is_segment = |segment: &String| !matches!(segment.as_str(), "" | "." | "..");
        if path.len() > SEGMENTS_MAX || !path.iter().all(is_segment) || rest.contains(['?', '#', '%', '\\']) {
            return Err(bad());
        }
        gateway.path_segments_mut().map_err(|()| bad())?.pop_if_empty().extend(["ipfs", ""]);
        let name = format!("ipfs://{}", rest.trim_end_matches('/'));
        guard.check_named(&gateway, &name)?;
        Ok(Self { name, root, path, gateway })
    }

    async fn block(&self, from: &Requests, cid: &Cid) -> Result<Block, AdapterError> {
        let bytes = if cid.hash().code() == IDENTITY {
            Bytes::copy_from_slice(cid.hash().digest())
        } else {
            let text = cid.to_string();
            let mut url = self.gateway.join(&text).map_err(|_| self.unverified("a CID cannot be asked for"))?;
            url.set_query(Some("format=raw"));
            let target = Target { url, name: self.name.clone(), authorization: None };
            let wanted = Wanted { name: &text, limit: "ipfs_block_bytes_max", bytes_max: BLOCK_BYTES_MAX };
            let bytes = from.download(&target, wanted).await?;
            if !is_named_by(&bytes, cid) {
                return Err(self.unverified("the gateway answered with other bytes than the CID names"));
            }
            bytes
        };
        if cid.codec() == RAW {
            return Ok(Block::File { file_bytes: bytes.len() as u64, data: bytes, rest: Vec::new() });
        }
        self.understood(bytes)
    }

    fn understood(&self, bytes: Bytes) -> Result<Block, AdapterError> {
        let broken = |_| self.unverified("a block is no dag-pb with UnixFS in it");
        let node = DagNode::decode(bytes).map_err(broken)?;
        let UnixFs { kind, data, file_bytes } =
            UnixFs::decode(node.data.clone().unwrap_or_default()).map_err(broken)?;
        match kind {
            // A file's end may be of the kind `Raw`.
            0 | 2 => {
                let rest = node.links.iter().map(|link| self.link(link)).collect::<Result<_, _>>()?;
                Ok(Block::File { data, rest, file_bytes })
            }
            1 => Ok(Block::Directory(node)),
            4 => Err(self.unverified("symbolic links are not followed")),
            5 => Err(self.unverified("sharded directories are not supported; use one of fewer files")),
            _ => Err(self.unverified("it has a node of UnixFS that is neither a file nor a directory")),
        }
    }

    fn link(&self, link: &DagLink) -> Result<Cid, AdapterError> {
        let cid = Cid::try_from(&link.hash[..]).map_err(|_| self.unverified("a link has no CID"))?;
        if is_supported(&cid) { Ok(cid) } else { Err(self.unverified(UNSUPPORTED)) }
    }

    /// The CID of a file in the folder.
    async fn find(&self, from: &Requests, file: &str) -> Result<Cid, AdapterError> {
        let mut at = self.root;
        for segment in self.path.iter().map(String::as_str).chain([file]) {
            let missing = || SourceError::Missing { source_name: self.name.clone(), file: segment.to_owned() };
            let Block::Directory(node) = self.block(from, &at).await? else { return Err(missing().into()) };
            let link = node.links.iter().find(|link| link.name == segment).ok_or_else(missing)?;
            at = self.link(link)?;
        }
        Ok(at)
    }

    fn unverified(&self, reason: &'static str) -> AdapterError {
        SourceError::Unverified { source_name: self.name.clone(), reason }.into()
    }
}

/// A part of a file that is still to come.
#[derive(Debug)]
enum Pending {
    Named(Cid),
    Here(Block),
}

#[async_trait]
impl RemoteFolder for Folder {
    fn name(&self) -> &str {
        &self.name
    }

    fn credential(&self) -> Option<Digest> {
        None
    }

    async fn file(&self, from: &Requests, wanted: Wanted<'_>) -> Result<Bytes, AdapterError> {
        let too_large = || {
            let (limit, max) = (wanted.limit, wanted.bytes_max as u64);
            AdapterError::OverLimit { what: "a file of the source", limit, max }
        };
        let mut file = BytesMut::new();
        // The next part is the last of the list.
        let mut pending = vec![Pending::Named(self.find(from, wanted.name).await?)];
        let mut blocks = 0;
        while !pending.is_empty() {
            let next = pending.split_off(pending.len().saturating_sub(BLOCKS_AHEAD));
            let load = |part| async move {
                match part {
                    Pending::Named(cid) => self.block(from, &cid).await.map(Pending::Here),
                    here @ Pending::Here(_) => Ok(here),
                }
            };
            pending.extend(try_join_all(next.into_iter().map(load)).await?);
            while let Some(Pending::Here(block)) = pending.pop_if(|part| matches!(part, Pending::Here(_))) {
                let Block::File { data, rest, file_bytes } = block else {
                    return Err(self.unverified("it has a directory where a file should be"));
                };
                blocks += 1;
                if blocks + pending.len() + rest.len() > BLOCKS_MAX {
                    let (limit, max) = ("ipfs_blocks_max", BLOCKS_MAX as u64);
                    return Err(AdapterError::OverLimit { what: "a file's number of blocks", limit, max });
                }
                let bytes_max = wanted.bytes_max.saturating_sub(file.len());
                if data.len() > bytes_max || file_bytes > bytes_max as u64 {
                    return Err(too_large());
                }
                file.extend_from_slice(&data);
                pending.extend(rest.into_iter().rev().map(Pending::Named));
            }
        }
        Ok(file.freeze())
    }
}

fn is_supported(cid: &Cid) -> bool {
    let hash = cid.hash();
    let is_hash = hash.code() == IDENTITY || (matches!(hash.code(), SHA2_256 | BLAKE3) && hash.size() == 32);
    is_hash && matches!(cid.codec(), RAW | DAG_PB)
}

fn is_named_by(bytes: &[u8], cid: &Cid) -> bool {
    let expected = cid.hash().digest();
    match cid.hash().code() {
        SHA2_256 => Sha256::digest(bytes)[..] == *expected,
        BLAKE3 => blake3::hash(bytes).as_bytes()[..] == *expected,
        _ => false,
    }
}
