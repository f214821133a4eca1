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

/// How a memory of [`with_dirty_memories`] may begin.
const PATTERN: u8 = 0x55;
/// Elements of the table of [`with_dirty_table`].
const TABLE_ELEMENTS: u8 = 100;

/// A guest with one more core module for each of these: a memory of so many pages, which begins with a pattern or with nothing.
/// At its start it grows by a few pages, traps unless all of it is as it was declared, and then fills all of it.
pub(crate) fn with_dirty_memories(guest: &[u8], memories: &[(usize, bool)]) -> Vec<u8> {
    memories.iter().fold(guest.to_vec(), |component, (pages, has_image)| {
        with_modules(&component, 1, &dirty_memory(*pages, *has_image, *has_image))
    })
}

/// One whose check must fail: it looks for a pattern that is not there.
pub(crate) fn with_wrong_check(guest: &[u8]) -> Vec<u8> {
    with_modules(guest, 1, &dirty_memory(2, true, false))
}

fn dirty_memory(pages: usize, expects_image: bool, has_image: bool) -> Vec<u8> {
    let mut memory = vec![1, 0];
    leb(&mut memory, pages);
    // memory.size; i32.const 16; i32.shl
    let size = [0x3f, 0, 0x41, 16, 0x74];
    // i32.const 8; memory.grow; drop; i32.const 0; i32.load8_u; i32.const PATTERN or 0; i32.ne; if; unreachable; end
    let pattern = [0x41, 0xd5, 0];
    let mut code = vec![1, 1, 0x7f, 0x41, 8, 0x40, 0, 0x1a, 0x41, 0, 0x2d, 0, 0];
    code.extend_from_slice(if expects_image { &pattern } else { &[0x41, 0] });
    code.extend_from_slice(&[0x47, 0x04, 0x40, 0x00, 0x0b]);
    // i32.const 8; local.set 0; loop; local.get 0; i64.load; i64.eqz; i32.eqz; if; unreachable; end
    code.extend_from_slice(&[0x41, 8, 0x21, 0, 0x03, 0x40, 0x20, 0, 0x29, 3, 0, 0x50, 0x45, 0x04, 0x40, 0x00, 0x0b]);
    // local.get 0; i32.const 8; i32.add; local.tee 0; SIZE; i32.lt_u; br_if 0; end
    code.extend_from_slice(&[0x20, 0, 0x41, 8, 0x6a, 0x22, 0]);
    code.extend_from_slice(&size);
    code.extend_from_slice(&[0x49, 0x0d, 0, 0x0b]);
    // i32.const 0; i32.const 0xaa; SIZE; memory.fill; end
    code.extend_from_slice(&[0x41, 0, 0x41, 0xaa, 1]);
    code.extend_from_slice(&size);
    code.extend_from_slice(&[0xfc, 11, 0, 0x0b]);
    let mut module = starting_with(&code, 5, &memory, &[]);
    if has_image {
        // One active segment at i32.const 0.
        section(&mut module, 11, &[1, 0, 0x41, 0, 0x0b, 1, PATTERN]);
    }
    module
}

/// A guest with one more core module, with a table. At its start it traps unless the table is empty, and then fills it.
pub(crate) fn with_dirty_table(guest: &[u8]) -> Vec<u8> {
    // loop; local.get 0; table.get 0; ref.is_null; i32.eqz; if; unreachable; end
    let mut code = vec![1, 1, 0x7f, 0x03, 0x40, 0x20, 0, 0x25, 0, 0xd1, 0x45, 0x04, 0x40, 0x00, 0x0b];
    // local.get 0; i32.const 1; i32.add; local.tee 0; i32.const N; i32.lt_u; br_if 0; end
    code.extend_from_slice(&[0x20, 0, 0x41, 1, 0x6a, 0x22, 0, 0x41, TABLE_ELEMENTS | 0x80, 0, 0x49, 0x0d, 0, 0x0b]);
    // i32.const 0; ref.func 0; i32.const N; table.fill 0; end
    code.extend_from_slice(&[0x41, 0, 0xd2, 0, 0x41, TABLE_ELEMENTS | 0x80, 0, 0xfc, 17, 0, 0x0b]);
    // The function is exported as `f`, so that there may be references to it.
    let module = starting_with(&code, 4, &[1, FUNCREF, 0, TABLE_ELEMENTS], &[1, 1, b'f', 0, 0]);
    with_modules(guest, 1, &module)
}

/// A core module with one function of this code, its start; one more section; and what it exports.
fn starting_with(code: &[u8], number: u8, content: &[u8], exports: &[u8]) -> Vec<u8> {
    let mut module = CORE_HEADER.to_vec();
    section(&mut module, 1, &[1, 0x60, 0, 0]);
    section(&mut module, 3, &[1, 0]);
    section(&mut module, number, content);
    if !exports.is_empty() {
        section(&mut module, 7, exports);
    }
    section(&mut module, 8, &[0]);
    let mut bodies = vec![1];
    leb(&mut bodies, code.len());
    bodies.extend_from_slice(code);
    section(&mut module, 10, &bodies);
    module
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
