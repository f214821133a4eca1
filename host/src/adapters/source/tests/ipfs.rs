//! `ipfs://` against gateways that lie.

use std::collections::HashMap;

use cid::Cid;
use cid::multihash::Multihash;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::super::ipfs::{DagLink, DagNode, UnixFs};
use super::*;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;

/// Blocks by their CIDs.
#[derive(Clone, Default)]
struct Blocks(HashMap<String, Vec<u8>>);

impl Blocks {
    fn add(&mut self, codec: u64, block: &[u8]) -> Cid {
        let hash = Multihash::wrap(0x12, &Sha256::digest(block)).expect("32 bytes");
        self.keep(Cid::new_v1(codec, hash), block)
    }

    fn keep(&mut self, cid: Cid, block: &[u8]) -> Cid {
        self.0.insert(cid.to_string(), block.to_vec());
        cid
    }

    fn node(&mut self, kind: u64, data: &[u8], file_bytes: u64, links: &[(&str, Cid)]) -> Cid {
        let block = node(kind, data, file_bytes, links);
        self.add(DAG_PB, &block)
    }

    /// A file whose blocks have so many bytes, below nodes of so many links.
    fn file(&mut self, content: &[u8], block_bytes: usize, links_max: usize) -> Cid {
        let mut level: Vec<(Cid, u64)> =
            content.chunks(block_bytes).map(|block| (self.add(RAW, block), block.len() as u64)).collect();
        while level.len() > 1 {
            let above = level.chunks(links_max).map(|below| {
                let links: Vec<_> = below.iter().map(|(cid, _)| ("", *cid)).collect();
                let bytes = below.iter().map(|(_, bytes)| bytes).sum();
                (self.node(2, b"", bytes, &links), bytes)
            });
            level = above.collect();
        }
        level[0].0
    }

    /// A folder with both files, below a folder `lora`.
    fn tree(&mut self) -> Cid {
        let config = self.add(RAW, CONFIG_TEXT);
        let weights = self.file(&weights(), 256, 3);
        let inner = self.node(1, b"", 0, &[(CONFIG, config), (WEIGHTS, weights)]);
        self.node(1, b"", 0, &[("README", config), ("lora", inner)])
    }
}

fn node(kind: u64, data: &[u8], file_bytes: u64, links: &[(&str, Cid)]) -> Vec<u8> {
    let data = UnixFs { kind, data: Bytes::copy_from_slice(data), file_bytes }.encode_to_vec();
    let link = |(name, cid): &(&str, Cid)| DagLink { hash: cid.to_bytes().into(), name: (*name).to_owned() };
    DagNode { data: Some(data.into()), links: links.iter().map(link).collect() }.encode_to_vec()
}

/// A gateway that answers each request for a block as `script` says of the block.
async fn gateway(blocks: Blocks, script: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static) -> FaultServer {
    FaultServer::start(move |seen| {
        let cid = seen.path.strip_prefix("/ipfs/").and_then(|path| path.strip_suffix("?format=raw"));
        match cid.and_then(|cid| blocks.0.get(cid)) {
            Some(block) => script(seen, block),
            None => Reply::status(404),
        }
    })
    .await
}

fn through(server: &FaultServer) -> Sources {
    let gateway = Url::parse(&format!("http://files.example:{}", server.port())).expect("a URL");
    sources(SourcesConfig { ipfs_gateway: Some(gateway), ..config(server.port()) })
}

async fn fetch_from(blocks: Blocks, url: &str) -> Fetched {
    let server = gateway(blocks, |_, block| Reply::ok(block)).await;
    fetch(&through(&server), url).await
}

#[tokio::test]
async fn a_folder_is_put_together_from_verified_blocks() {
    let mut blocks = Blocks::default();
    let root = blocks.tree();
    let found = fetch_from(blocks.clone(), &format!("ipfs://{root}/lora/")).await.expect("fetched");
    assert_eq!(found, (Bytes::from_static(CONFIG_TEXT), Bytes::from(weights())));
    // A file in one node, one in BLAKE3, one within its own CID; the root as the first version writes it.
    let inline = Cid::new_v1(RAW, Multihash::wrap(0, CONFIG_TEXT).expect("short"));
    let hash = Multihash::wrap(0x1e, blake3::hash(&weights()).as_bytes()).expect("32 bytes");
    let whole = blocks.keep(Cid::new_v1(RAW, hash), &weights());
    let folder = node(1, b"", 0, &[(CONFIG, inline), (WEIGHTS, whole)]);
    let old = Cid::new_v0(Multihash::wrap(0x12, &Sha256::digest(&folder)).expect("32 bytes")).expect("version 0");
    blocks.keep(old, &folder);
    assert!(old.to_string().starts_with("Qm"));
    let found = fetch_from(blocks, &format!("ipfs://{old}")).await.expect("fetched");
    assert_eq!(found, (Bytes::from_static(CONFIG_TEXT), Bytes::from(weights())));
}

#[tokio::test]
async fn a_gateway_is_not_trusted() {
    let mut blocks = Blocks::default();
    let root = blocks.tree();
    let count = blocks.0.len();
    assert!(count > 12);
    let url = format!("ipfs://{root}/lora");
    // Whichever block it is, wrong or truncated: nothing is taken.
    for cid in blocks.0.keys().filter(|cid| **cid != root.to_string()) {
        let victim = format!("/ipfs/{cid}?format=raw");
        for wrong in [|block: &[u8]| block[..block.len() - 1].to_vec(), |block: &[u8]| [block, b"!"].concat()] {
            let victim = victim.clone();
            let reply = move |seen: &Seen, block: &[u8]| {
                if seen.path == victim { Reply::ok(&wrong(block)) } else { Reply::ok(block) }
            };
            let server = gateway(blocks.clone(), reply).await;
            assert_eq!(code(&fetch(&through(&server), &url).await), "source_unverified", "{cid}");
        }
    }
    // Cut, it is asked for again; gone, it is missing; too large for a block, it is not read.
    let server = gateway(blocks.clone(), |seen, block| {
        let reply = Reply::ok(block);
        if seen.before == 0 { reply.cut(block.len() / 2) } else { reply }
    })
    .await;
    assert_eq!(code(&fetch(&through(&server), &url).await), "fetched");
    let server = gateway(blocks.clone(), |_, _| Reply::status(410)).await;
    assert_eq!(code(&fetch(&through(&server), &url).await), "source_not_found");
    let server = gateway(blocks, |_, block| Reply::ok(block).endless()).await;
    assert_eq!(code(&fetch(&through(&server), &url).await), "limit_exceeded");
}

#[tokio::test]
async fn hostile_trees_end() {
    let mut blocks = Blocks::default();
    let config = blocks.add(RAW, CONFIG_TEXT);
    let sharded = blocks.node(5, b"", 0, &[("AAlora", config)]);
    let link = blocks.node(4, b"/etc/passwd", 0, &[]);
    let garbage = blocks.add(DAG_PB, b"\xff\xff\xff\xffgarbage");
    // A block that is small and says that it is large; a tree that unfolds into ever more of the same.
    let claim = blocks.node(2, b"x", 1 << 60, &[]);
    let mut bomb = blocks.add(RAW, &[7; 64]);
    let mut empty = blocks.add(RAW, b"");
    for _ in 0..10 {
        bomb = blocks.node(2, b"", 0, &[("", bomb); 16]);
        empty = blocks.node(2, b"", 0, &[("", empty); 64]);
    }
    let folder = blocks.node(1, b"", 0, &[]);
    let other = Cid::new_v1(0x71, *config.hash());
    for (weights, expected) in [
        (garbage, "source_unverified"),
        (sharded, "source_unverified"),
        (link, "source_unverified"),
        (folder, "source_unverified"),
        (other, "source_unverified"),
        (claim, "limit_exceeded"),
        (bomb, "limit_exceeded"),
    ] {
        let root = blocks.node(1, b"", 0, &[(CONFIG, config), (WEIGHTS, weights)]);
        assert_eq!(code(&fetch_from(blocks.clone(), &format!("ipfs://{root}")).await), expected, "{weights}");
    }
    // Nothing but empty blocks: the time ends it, or their number.
    let root = blocks.node(1, b"", 0, &[(CONFIG, empty)]);
    let server = gateway(blocks.clone(), |_, block| Reply::ok(block)).await;
    let mut sources = through(&server);
    sources.config.total = Duration::from_secs(1);
    let impatient = Sources::with_lookup(None, sources.config, Arc::new(Names::default())).expect("sources");
    let found = fetch(&impatient, &format!("ipfs://{root}")).await;
    assert!(["source_timeout", "limit_exceeded"].contains(&code(&found)), "{found:?}");
    for (url, expected) in [
        (format!("ipfs://{sharded}/lora"), "source_unverified"),
        (format!("ipfs://{config}"), "source_not_found"),
        (format!("ipfs://{root}/none"), "source_not_found"),
        (format!("ipfs://{other}"), "invalid_source"),
        (format!("ipfs://{root}/../x"), "invalid_source"),
        (format!("ipfs://{root}?format=car"), "invalid_source"),
        (format!("ipfs://{root}/%2e%2e"), "invalid_source"),
        ("ipfs://".to_owned(), "invalid_source"),
        ("ipfs://Qmnonsense".to_owned(), "invalid_source"),
        (format!("ipfs://{root}/{}", "a/".repeat(40)), "invalid_source"),
    ] {
        assert_eq!(code(&fetch(&impatient, &url).await), expected, "{url}");
    }
}
