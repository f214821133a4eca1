//! Components put together by hand, for what no toolchain would make. Section numbers are those of the component
//! model's binary format.

const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";

/// A component with nothing in it.
pub(crate) fn empty() -> Vec<u8> {
    HEADER.to_vec()
}

/// A component that imports an instance of this name, and nothing else.
pub(crate) fn importing(name: &str) -> Vec<u8> {
    let mut component = empty();
    // One type: an instance with no exports.
    section(&mut component, 7, &[1, 0x42, 0]);
    // One import: an instance of type 0.
    let mut import = vec![1, 0];
    leb(&mut import, name.len());
    import.extend_from_slice(name.as_bytes());
    import.extend_from_slice(&[5, 0]);
    section(&mut component, 10, &import);
    component
}

/// A guest with `count` more core modules, each with a memory of this many pages of 64 KiB, instantiated at its start.
pub(crate) fn with_memories(guest: &[u8], count: usize, pages: usize) -> Vec<u8> {
    let mut memory = vec![1, 0];
    leb(&mut memory, pages);
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    section(&mut module, 5, &memory);
    let mut component = guest.to_vec();
    for index in (core_modules(guest)..).take(count) {
        section(&mut component, 1, &module);
        // One core instance, of that module, with no arguments.
        let mut instance = vec![1, 0];
        leb(&mut instance, index);
        instance.push(0);
        section(&mut component, 2, &instance);
    }
    component
}

fn core_modules(component: &[u8]) -> usize {
    let (mut at, mut count) = (HEADER.len(), 0);
    while at < component.len() {
        let number = component[at];
        at += 1;
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = component[at];
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        at += length;
        count += usize::from(number == 1);
    }
    count
}

fn section(binary: &mut Vec<u8>, number: u8, content: &[u8]) {
    binary.push(number);
    leb(binary, content.len());
    binary.extend_from_slice(content);
}

fn leb(binary: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        binary.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    binary.push(number as u8);
}
