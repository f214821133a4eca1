#!/usr/bin/env bash
# Finds or makes a Rust toolchain that can build for WebAssembly, and prints what to export for it.
#
#   eval "$(scripts/guest-toolchain.sh [TARGET])"        TARGET is wasm32-unknown-unknown unless given
#
# - If rustc has the target's standard library (`rustup target add TARGET`), nothing is printed: plain cargo works.
# - Else, on Debian, the packages rustc-web and rust-web-src are downloaded and unpacked, never installed (they conflict
#   with others), below TENON_GUEST_TOOLCHAIN_DIR; std is built from its source once (about 45 s); RUSTC and the linker
#   are printed. From then on a guest needs no -Z flag.
# - Else it fails and says what to run.
set -euo pipefail

target=${1:-wasm32-unknown-unknown}
root=${TENON_GUEST_TOOLCHAIN_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/tenon/guest-toolchain}

say() { echo "guest-toolchain: $*" >&2; }
give_up() { say "$1: run \`rustup target add $target\`"; exit 1; }
has_std() { ls "$1"/libstd-*.rlib >/dev/null 2>&1; }

libdir=$("${RUSTC:-rustc}" --print target-libdir --target "$target" 2>/dev/null || true)
if [ -z "${TENON_GUEST_TOOLCHAIN_FORCE:-}" ] && has_std "$libdir"; then
  say "rustc has $target"
  exit 0
fi

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "rustc has no $target and this is not Debian"

candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p'; }
# The number at the end goes up when this script makes something else of the same packages.
folder_of() { echo "$root/${1//[^A-Za-z0-9.]/_}-2"; }

version=$(candidate rustc-web)
if [ ! -e "$(folder_of "$version")/.unpacked" ]; then
  # Old package lists name files that are gone.
  apt-get update -qq >&2 || say "apt-get update failed; going on with the lists as they are"
  version=$(candidate rustc-web)
fi
[ -n "$version" ] && [ "$version" != "(none)" ] || give_up "there is no package rustc-web"

folder=$(folder_of "$version")
usr=$folder/usr
mkdir -p "$root"
exec 9>"$root/.lock"
flock 9

# A program of the unpacked tree finds its libraries there.
write_wrapper() {
  local library_path=$usr/lib/$(uname -m)-linux-gnu:$usr/lib
  printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\nexec %s "$@"\n' \
    "$library_path" "$2" >"$1"
  chmod +x "$1"
}

unpack() {
  local std llvm deb
  std=$(apt-cache depends "libstd-rust-web-dev=$version" | sed -n 's/^  Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p')
  llvm=$(apt-cache depends "$std=$version" | sed -n 's/^  Depends: \(libllvm[0-9]*\)$/\1/p')
  [ -n "$std" ] && [ -n "$llvm" ] || give_up "the dependencies of rustc-web $version are not understood"
  rm -rf "$folder"
  mkdir -p "$folder/debs"
  say "downloading rustc-web $version (about 130 MB)"
  (cd "$folder/debs" && apt-get download -qq "rustc-web=$version" "libstd-rust-web-dev=$version" "$std=$version" \
    "rust-web-src=$version" "$llvm" "lld-${llvm#libllvm}" >&2)
  say "unpacking"
  for deb in "$folder"/debs/*.deb; do
    case $deb in
      # Of 340 MB of source only the standard library is wanted.
      */rust-web-src_*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$folder" --wildcards './usr/src/*/library' './usr/lib' ;;
      *) dpkg-deb -x "$deb" "$folder" ;;
    esac
  done
  rm -rf "$folder/debs"
  write_wrapper "$folder/rustc" "$usr/bin/rustc"
  write_wrapper "$folder/wasm-ld" "$usr/lib/llvm-${llvm#libllvm}/bin/wasm-ld"
  "$folder/rustc" --version >&2
  touch "$folder/.unpacked"
}

build_std() {
  local build=$folder/std-build out=$1
  say "building std for $target"
  rm -rf "$build" && mkdir -p "$build/src"
  printf '[package]\nname = "std-build"\nversion = "0.0.0"\nedition = "2021"\n[profile.release]\npanic = "abort"\ndebug = 0\n[workspace]\n' \
    >"$build/Cargo.toml"
  echo '#![no_std]' >"$build/src/lib.rs"
  # Without bitcode a guest with `lto = true` does not link. Without the mapping guests would name this machine's folders.
  local flags="-Cembed-bitcode=yes --remap-path-prefix=$folder=/toolchain"
  flags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  (cd "$build" && env -u CARGO_ENCODED_RUSTFLAGS RUSTC="$folder/rustc" RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" cargo \
    build --release --target "$target" -Z build-std=std,panic_abort --target-dir "$build/target" >&2)
  rm -rf "$out" "$out.new" && mkdir -p "$out.new"
  cp "$build/target/$target/release/deps/"*.rlib "$out.new/"
  rm -f "$out.new"/libstd_build-*
  mv "$out.new" "$out"
  rm -rf "$build"
}

[ -e "$folder/.unpacked" ] || unpack
std_dir=$usr/lib/rustlib/$target/lib
has_std "$std_dir" || build_std "$std_dir"

linker=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_LINKER
echo "export RUSTC=$folder/rustc"
echo "export $linker=$folder/wasm-ld"
