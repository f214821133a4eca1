//! Components put together by hand, for what no toolchain would make. Section numbers are those of the component
//! model's binary format.

const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
const CORE_HEADER: &[u8] = b"\0asm\x01\0\0\0";
const FUNCREF: u8 = 0x70;

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
    let mut module = CORE_HEADER.to_vec();
    section(&mut module, 5, &memory);
    with_modules(guest, count, &module)
}

/// The same with tables of this many elements.
pub(crate) fn with_tables(guest: &[u8], count: usize, elements: usize) -> Vec<u8> {
    let mut table = vec![1, FUNCREF, 0];
    leb(&mut table, elements);
    let mut module = CORE_HEADER.to_vec();
    section(&mut module, 4, &table);
    with_modules(guest, count, &module)
}

/// The same with memories of one page that each grow by one page as often as they can, when they are instantiated.
pub(crate) fn with_growing_memories(guest: &[u8], count: usize) -> Vec<u8> {
    let mut module = CORE_HEADER.to_vec();
    // One type, `() -> ()`; one function of it; a memory of one page; the function is the start.
    section(&mut module, 1, &[1, 0x60, 0, 0]);
    section(&mut module, 3, &[1, 0]);
    section(&mut module, 5, &[1, 0, 1]);
    section(&mut module, 8, &[0]);
    // loop; i32.const 1; memory.grow; i32.const -1; i32.ne; br_if 0; end; end
    let code = [0, 0x03, 0x40, 0x41, 1, 0x40, 0, 0x41, 0x7f, 0x47, 0x0d, 0, 0x0b, 0x0b];
    let mut bodies = vec![1];
    leb(&mut bodies, code.len());
    bodies.extend_from_slice(&code);
    section(&mut module, 10, &bodies);
    with_modules(guest, count, &module)
}

/// The same with one module that computes without end when it is instantiated.
pub(crate) fn with_endless_start(guest: &[u8]) -> Vec<u8> {
    let mut module = CORE_HEADER.to_vec();
    // One type, `() -> ()`; one function of it, which is the start: loop; br 0; end; end
    section(&mut module, 1, &[1, 0x60, 0, 0]);
    section(&mut module, 3, &[1, 0]);
    section(&mut module, 8, &[0]);
    section(&mut module, 10, &[1, 7, 0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b]);
    with_modules(guest, 1, &module)
}

/// A guest with this module `count` times more, each instantiated at its start.
fn with_modules(guest: &[u8], count: usize, module: &[u8]) -> Vec<u8> {
    let mut component = guest.to_vec();
    for index in (core_modules(guest)..).take(count) {
        section(&mut component, 1, module);
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
