//! Components that cost a compiler, or a validator, more than they cost who sends them; and what is no component at all. They
//! are the guest `echo` with one more core module, or nothing of that kind. Not here: what must come of each.

/// One kind of bomb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its own description")]
pub enum Bomb {
    /// Functions that do nothing.
    Functions(usize),
    /// Blocks within blocks.
    Nesting(usize),
    /// A jump with so many targets.
    BranchTable(usize),
    /// Functions with as many variables as may be.
    Locals(usize),
    /// Variables that each of many branches may change.
    Merges { locals: usize, branches: usize },
    /// Types of functions.
    Types(usize),
    /// One segment of data of so many bytes.
    Data(usize),
    /// Sections that nobody reads.
    CustomSections(usize),
    /// Names by which one function is exported.
    Exports(usize),
    /// Components within components.
    Components(usize),
    /// Memories of the one more module.
    Memories(usize),
    /// A memory with addresses of 64 bits.
    Memory64,
    /// A memory that threads may share.
    SharedMemory,
    /// A memory of so many pages.
    Pages(usize),
    /// A table of so many elements.
    Elements(usize),
    /// So many modules, each with a memory of so many pages, instantiated at the start.
    Instances { count: usize, pages: usize },
    /// So many modules, each with a table of so many elements, instantiated at the start.
    Tables { count: usize, elements: usize },
    /// The first half of the guest.
    CutOff,
    /// Bytes that follow no rule, after the header.
    Noise(usize),
    /// A vector that says it has four thousand million members.
    Lie,
}

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const END: u8 = 0x0b;
/// `() -> ()`
const TYPE: &[u8] = &[0x60, 0, 0];

impl Bomb {
    pub(crate) fn component(self, echo: &[u8]) -> Result<Vec<u8>, String> {
        let module = match self {
            Self::CutOff => return Ok(echo.get(..echo.len() / 2).unwrap_or_default().to_vec()),
            Self::Noise(bytes) => return Ok(noise(bytes)),
            Self::Lie => {
                return Ok([COMPONENT, &[1, 18], MODULE, &[1, 8, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x60, 0, 0]].concat());
            }
            Self::Components(depth) => return Ok(nested(depth)),
            Self::Instances { count, pages } => {
                return with_modules(echo, count, &with_section(5, &vector(&[limits(pages)])));
            }
            Self::Tables { count, elements } => {
                let table = [vec![0x70], limits(elements)].concat();
                return with_modules(echo, count, &with_section(4, &vector(&[table])));
            }
            other => other.module(),
        };
        with_modules(echo, 1, &module)
    }

    /// The one more module.
    fn module(self) -> Vec<u8> {
        match self {
            Self::Functions(count) => functions(&vec![vec![0, END]; count]),
            Self::Nesting(depth) => {
                let body = [vec![0], [2, 0x40].repeat(depth), vec![END; depth], vec![END]].concat();
                functions(&[body])
            }
            Self::BranchTable(targets) => {
                // block; i32.const 0; br_table targets… 0; end; end
                let mut body = vec![0, 2, 0x40, 0x41, 0, 0x0e];
                leb(&mut body, targets);
                body.resize(body.len() + targets + 1, 0);
                body.extend([END, END]);
                functions(&[body])
            }
            Self::Locals(count) => {
                // One group of 50,000 i64.
                let mut body = vec![1];
                leb(&mut body, 50_000);
                body.extend([0x7e, END]);
                functions(&vec![body; count])
            }
            Self::Merges { locals, branches } => functions(&[merges(locals, branches)]),
            Self::Types(count) => with_section(1, &vector(&vec![TYPE.to_vec(); count])),
            Self::Data(bytes) => {
                let mut data = vec![1, 0, 0x41, 0, END];
                leb(&mut data, bytes);
                data.extend(noise(bytes).split_off(COMPONENT.len()));
                let mut module = with_section(5, &vector(&[limits(bytes.div_ceil(1 << 16))]));
                section(&mut module, 11, &data);
                module
            }
            Self::CustomSections(count) => {
                let mut module = MODULE.to_vec();
                (0..count).for_each(|_| section(&mut module, 0, &[1, b'x', 0]));
                module
            }
            Self::Exports(count) => {
                let names = (0..count).map(|number| {
                    let name = format!("f{number}");
                    let mut export = Vec::new();
                    leb(&mut export, name.len());
                    export.extend_from_slice(name.as_bytes());
                    export.extend([0, 0]);
                    export
                });
                let exports = vector(&names.collect::<Vec<_>>());
                let mut module = with_section(1, &vector(&[TYPE.to_vec()]));
                section(&mut module, 3, &[1, 0]);
                section(&mut module, 7, &exports);
                section(&mut module, 10, &vector(&[sized(&[0, END])]));
                module
            }
            Self::Memories(count) => with_section(5, &vector(&vec![limits(1); count])),
            Self::Memory64 => with_section(5, &[1, 4, 1]),
            Self::SharedMemory => with_section(5, &[1, 3, 1, 2]),
            Self::Pages(pages) => with_section(5, &vector(&[limits(pages)])),
            Self::Elements(elements) => with_section(4, &vector(&[[vec![0x70], limits(elements)].concat()])),
            // Made whole above.
            Self::Components(_)
            | Self::Instances { .. }
            | Self::Tables { .. }
            | Self::CutOff
            | Self::Noise(_)
            | Self::Lie => MODULE.to_vec(),
        }
    }
}

/// A module of functions `() -> ()` with these bodies.
fn functions(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut module = with_section(1, &vector(&[TYPE.to_vec()]));
    section(&mut module, 3, &vector(&vec![vec![0]; bodies.len()]));
    let sized: Vec<Vec<u8>> = bodies.iter().map(|body| sized(body)).collect();
    section(&mut module, 10, &vector(&sized));
    module
}

/// `if (x0) { xi = xj + xk } …`: each branch makes a new value of one of many variables.
fn merges(locals: usize, branches: usize) -> Vec<u8> {
    let mut body = vec![1];
    leb(&mut body, locals);
    body.push(0x7f);
    for branch in 0..branches {
        // local.get i; if; local.get j; local.get k; i32.add; local.set i; end
        let [one, two, three] = [branch * 7 + 1, branch * 13 + 5, branch * 29 + 11].map(|place| place % locals.max(1));
        for (instruction, place) in
            [(0x20, one), (0x04, 0x40), (0x20, two), (0x20, three), (0x6a, usize::MAX), (0x21, one)]
        {
            body.push(instruction);
            match (instruction, place) {
                (_, usize::MAX) => {}
                (0x04, _) => body.push(0x40),
                _ => leb(&mut body, place),
            }
        }
        body.push(END);
    }
    body.push(END);
    body
}

fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(COMPONENT.to_vec(), |inner, _| {
        let mut outer = COMPONENT.to_vec();
        section(&mut outer, 4, &inner);
        outer
    })
}

/// The same bytes each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(bytes);
    COMPONENT.iter().copied().chain(bytes).collect()
}

/// The guest with this module so many times more, each instantiated.
fn with_modules(guest: &[u8], count: usize, module: &[u8]) -> Result<Vec<u8>, String> {
    let mut component = guest.to_vec();
    for index in (core_modules(guest).ok_or("the guest is no component")?..).take(count) {
        section(&mut component, 1, module);
        let mut instance = vec![1, 0];
        leb(&mut instance, index);
        instance.push(0);
        section(&mut component, 2, &instance);
    }
    Ok(component)
}

/// How many sections of the component are core modules.
fn core_modules(component: &[u8]) -> Option<usize> {
    let mut rest = component.strip_prefix(COMPONENT)?;
    let mut count = 0;
    while let Some((number, after)) = rest.split_first() {
        let (mut length, mut shift, mut after) = (0_usize, 0, after);
        loop {
            let (byte, more) = after.split_first()?;
            length |= usize::from(byte & 0x7f) << shift;
            (shift, after) = (shift + 7, more);
            if byte & 0x80 == 0 {
                break;
            }
        }
        rest = after.get(length..)?;
        count += usize::from(*number == 1);
    }
    Some(count)
}

/// A memory or a table of at least so many.
fn limits(least: usize) -> Vec<u8> {
    let mut limits = vec![0];
    leb(&mut limits, least);
    limits
}

fn vector(items: &[Vec<u8>]) -> Vec<u8> {
    let mut vector = Vec::new();
    leb(&mut vector, items.len());
    vector.extend(items.iter().flatten());
    vector
}

fn sized(body: &[u8]) -> Vec<u8> {
    let mut sized = Vec::with_capacity(body.len() + 5);
    leb(&mut sized, body.len());
    sized.extend_from_slice(body);
    sized
}

fn with_section(number: u8, content: &[u8]) -> Vec<u8> {
    let mut module = MODULE.to_vec();
    section(&mut module, number, content);
    module
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
