//! Reads JSON as it comes, and says as soon as it is known whether a document is complete, or can no longer become one
//! (RFC 8259, with escaped surrogates in pairs). Ticks off the keys of an outermost object on the way. Not here: keeping the
//! text, and what the values are.

/// Arrays and objects inside one another.
const DEPTH_MAX: usize = 64;

/// What is known after some text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It may still become a document.
    Incomplete,
    /// The document ended before this byte of the text that was given last.
    Complete { end: usize },
    /// Whatever follows, it is none.
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    /// After a value: `,` or the end of what it is in; outside of everything, nothing.
    After,
    Text {
        is_key: bool,
        part: Part,
    },
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Digits),
}

/// Where in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Plain,
    Escape,
    /// Hexadecimal digits: how many are left, their value so far, the high surrogate before them.
    Hex {
        left: u8,
        value: u16,
        high: Option<u16>,
    },
    /// After a high surrogate: `\`, then `u`.
    LowEscape(u16),
    LowU(u16),
}

/// What of a number was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Minus,
    Zero,
    Whole,
    Dot,
    Fraction,
    PowerMark,
    PowerSign,
    Power,
}

/// The state between two pieces of text.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    inside: Vec<Container>,
    expect: Option<Expect>,
    /// The key of the outermost object that is being read.
    key: String,
    /// Keys that are required and were not met yet.
    missing: Vec<String>,
}

impl Scan {
    /// Before the first byte.
    pub(crate) fn new(required: Vec<String>) -> Self {
        Self { inside: Vec::new(), expect: Some(Expect::Value), key: String::new(), missing: required }
    }

    /// A required key that was not met yet; any, if the document is no object.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.missing.first().map(String::as_str)
    }

    /// Takes more text. After anything but [`Progress::Incomplete`] the answer stays `Invalid`.
    pub(crate) fn push(&mut self, text: &str) -> Progress {
        for (at, char) in text.char_indices() {
            let Some(expect) = self.expect.take() else { return Progress::Invalid };
            let after_number = ends_number(expect, char);
            let expect = if after_number { Expect::After } else { expect };
            // A number ends where something else begins; everything else ends with its last character.
            if after_number && self.inside.is_empty() {
                return if is_space(char) { Progress::Complete { end: at } } else { Progress::Invalid };
            }
            let Some(next) = self.step(expect, char) else { return Progress::Invalid };
            if next == Expect::After && self.inside.is_empty() {
                return Progress::Complete { end: at + char.len_utf8() };
            }
            self.expect = Some(next);
        }
        if self.expect.is_some() { Progress::Incomplete } else { Progress::Invalid }
    }

    /// Whether the text may end here: only a number outside of everything is complete without more.
    pub(crate) fn may_end(&self) -> bool {
        self.inside.is_empty() && matches!(self.expect, Some(Expect::Number(digits)) if digits.may_end())
    }

    fn step(&mut self, expect: Expect, char: char) -> Option<Expect> {
        match expect {
            Expect::Text { is_key, part } => self.text(is_key, part, char),
            Expect::Word(rest) => match rest.strip_prefix(char)? {
                "" => Some(Expect::After),
                rest => Some(Expect::Word(rest)),
            },
            Expect::Number(digits) => digits.step(char).map(Expect::Number),
            expect if is_space(char) => Some(expect),
            Expect::Value => self.value(char),
            Expect::ValueOrEnd if char == ']' => self.close(Container::Array),
            Expect::ValueOrEnd => self.value(char),
            Expect::KeyOrEnd if char == '}' => self.close(Container::Object),
            Expect::KeyOrEnd | Expect::Key => (char == '"').then_some(Expect::Text { is_key: true, part: Part::Plain }),
            Expect::Colon => (char == ':').then_some(Expect::Value),
            Expect::After => match (char, self.inside.last()?) {
                (',', Container::Array) => Some(Expect::Value),
                (',', Container::Object) => Some(Expect::Key),
                (']', Container::Array) => self.close(Container::Array),
                ('}', Container::Object) => self.close(Container::Object),
                _ => None,
            },
        }
    }

    fn text(&mut self, is_key: bool, part: Part, char: char) -> Option<Expect> {
        let mut decoded = None;
        let part = match part {
            Part::Plain => match char {
                '"' => return Some(self.end_text(is_key)),
                '\\' => Part::Escape,
                '\0'..='\u{1f}' => return None,
                _ => {
                    decoded = Some(char);
                    Part::Plain
                }
            },
            Part::Escape if char == 'u' => Part::Hex { left: 4, value: 0, high: None },
            Part::Escape => {
                decoded = Some(escaped(char)?);
                Part::Plain
            }
            Part::Hex { left, value, high } => {
                let value = value << 4 | u16::try_from(char.to_digit(16)?).ok()?;
                if left > 1 {
                    Part::Hex { left: left - 1, value, high }
                } else {
                    decoded = unicode(high, value)?;
                    if decoded.is_some() { Part::Plain } else { Part::LowEscape(value) }
                }
            }
            Part::LowEscape(high) => (char == '\\').then_some(Part::LowU(high))?,
            Part::LowU(high) => (char == 'u').then_some(Part::Hex { left: 4, value: 0, high: Some(high) })?,
        };
        if is_key && self.inside.len() == 1 {
            self.key.extend(decoded);
        }
        Some(Expect::Text { is_key, part })
    }

    fn end_text(&mut self, is_key: bool) -> Expect {
        if !is_key {
            return Expect::After;
        }
        let key = std::mem::take(&mut self.key);
        if self.inside.len() == 1 {
            self.missing.retain(|missing| *missing != key);
        }
        Expect::Colon
    }

    fn value(&mut self, char: char) -> Option<Expect> {
        match char {
            '{' => self.open(Container::Object, Expect::KeyOrEnd),
            '[' => self.open(Container::Array, Expect::ValueOrEnd),
            '"' => Some(Expect::Text { is_key: false, part: Part::Plain }),
            't' => Some(Expect::Word("rue")),
            'f' => Some(Expect::Word("alse")),
            'n' => Some(Expect::Word("ull")),
            '-' => Some(Expect::Number(Digits::Minus)),
            _ => Digits::Minus.step(char).map(Expect::Number),
        }
    }

    fn open(&mut self, container: Container, next: Expect) -> Option<Expect> {
        self.inside.push(container);
        (self.inside.len() <= DEPTH_MAX).then_some(next)
    }

    fn close(&mut self, container: Container) -> Option<Expect> {
        (self.inside.pop() == Some(container)).then_some(Expect::After)
    }
}

fn is_space(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\n' | '\r')
}

fn ends_number(expect: Expect, char: char) -> bool {
    matches!(expect, Expect::Number(digits) if digits.may_end() && digits.step(char).is_none())
}

/// After `\`: what it stands for.
fn escaped(char: char) -> Option<char> {
    Some(match char {
        '"' | '\\' | '/' => char,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        _ => return None,
    })
}

/// After four digits: what they stand for, with the surrogate before them; `None` inside if another must follow.
fn unicode(high: Option<u16>, value: u16) -> Option<Option<char>> {
    match (high, value) {
        (None, 0xd800..=0xdbff) => Some(None),
        (None, value) => char::from_u32(value.into()).map(Some),
        (Some(high), value) => {
            char::decode_utf16([high, value]).next()?.ok().filter(|char| *char > '\u{ffff}').map(Some)
        }
    }
}

impl Digits {
    fn step(self, char: char) -> Option<Self> {
        let is_digit = char.is_ascii_digit();
        match (self, char) {
            (Self::Minus, '0') => Some(Self::Zero),
            (Self::Minus | Self::Whole, _) if is_digit => Some(Self::Whole),
            (Self::Zero | Self::Whole, '.') => Some(Self::Dot),
            (Self::Dot | Self::Fraction, _) if is_digit => Some(Self::Fraction),
            (Self::Zero | Self::Whole | Self::Fraction, 'e' | 'E') => Some(Self::PowerMark),
            (Self::PowerMark, '+' | '-') => Some(Self::PowerSign),
            (Self::PowerMark | Self::PowerSign | Self::Power, _) if is_digit => Some(Self::Power),
            _ => None,
        }
    }

    const fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Power)
    }
}
