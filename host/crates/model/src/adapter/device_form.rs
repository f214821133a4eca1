//! The packed form for a CUDA device: factors in bf16 as its kernels read them, one matrix after the other in one piece of
//! host memory. Not here: where on the device they lie (`runner/cuda/adapters.rs`).

use half::bf16;
use kernels::Bytes;
use types::Module;

use super::PackedTerm;

/// Ranks are padded with zeros to a multiple of it: rows of A, columns of B.
pub(crate) const RANK_MULTIPLE: usize = 8;
/// Matrices begin at a multiple of it.
const ALIGN_BYTES: usize = 16;
const FACTOR_BYTES: usize = size_of::<u16>();

/// All changes of an adapter, in order of layer and [`Module::index`].
pub(crate) struct DeviceFactors {
    terms: Vec<DeviceTerm>,
    bytes: Bytes,
}

/// The change of one module, and where in the bytes it lies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeviceTerm {
    pub(crate) layer: usize,
    pub(crate) module: Module,
    /// Padded.
    pub(crate) rank: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// What B(A x) is multiplied by.
    pub(crate) scale: f32,
    /// bf16 `[rank, inputs]`
    pub(crate) a: usize,
    /// bf16 `[outputs, rank]`
    pub(crate) b: usize,
    /// For DoRA: g − 1 of each output in f32, `[outputs]`.
    pub(crate) growth: Option<usize>,
}

impl DeviceTerm {
    /// Without a place yet.
    pub(crate) fn new(
        layer: usize,
        module: Module,
        rank: usize,
        (inputs, outputs): (usize, usize),
        scale: f32,
        grows: bool,
    ) -> Self {
        Self { layer, module, rank, inputs, outputs, scale, a: 0, b: 0, growth: grows.then_some(0) }
    }

    /// Takes the next places, from this byte on; the byte after them. `None` if that is beyond any memory.
    fn place(&mut self, at: usize) -> Option<usize> {
        let next = |at: usize, values: Option<usize>, bytes: usize| {
            at.checked_add(values?.checked_mul(bytes)?)?.checked_next_multiple_of(ALIGN_BYTES)
        };
        self.a = at;
        self.b = next(self.a, self.rank.checked_mul(self.inputs), FACTOR_BYTES)?;
        let end = next(self.b, self.rank.checked_mul(self.outputs), FACTOR_BYTES)?;
        if self.growth.is_none() {
            return Some(end);
        }
        self.growth = Some(end);
        next(end, Some(self.outputs), size_of::<f32>())
    }
}

impl DeviceFactors {
    /// Rounds the factors to bf16; the growth of DoRA stays in f32.
    pub(super) fn pack(layers: &[[Option<PackedTerm>; 7]]) -> Self {
        let (mut terms, mut bytes) = (Vec::new(), Vec::new());
        for (layer, modules) in layers.iter().enumerate() {
            for (module, term) in Module::ALL.into_iter().filter_map(|one| Some((one, modules[one.index()].as_ref()?)))
            {
                let PackedTerm { pair, scale, growth } = term;
                let rank = pair.rank().next_multiple_of(RANK_MULTIPLE);
                let shape = (pair.inputs(), pair.outputs());
                let mut placed = DeviceTerm::new(layer, module, rank, shape, *scale, growth.is_some());
                // As much memory was just found for the same in f32.
                let end = placed.place(bytes.len()).unwrap_or(bytes.len());
                bytes.resize(end, 0);
                write_term(term, &placed, &mut bytes);
                terms.push(placed);
            }
        }
        Self { terms, bytes: bytes.into() }
    }

    /// These terms, in their order, in these bytes; `None` if they do not fit, a rank is 0 or not padded, or they are not of
    /// so many layers in order.
    pub(super) fn new(mut terms: Vec<DeviceTerm>, bytes: impl Into<Bytes>, layers: usize) -> Option<Self> {
        let bytes = bytes.into();
        let is_padded = |term: &DeviceTerm| term.rank > 0 && term.rank.is_multiple_of(RANK_MULTIPLE);
        let place = |term: &DeviceTerm| (term.layer, term.module.index());
        let in_order = terms.is_sorted_by(|one, two| place(one) < place(two));
        let in_layers = terms.iter().all(|term| term.layer < layers && is_padded(term));
        let end = terms.iter_mut().try_fold(0, |at, term| term.place(at))?;
        (in_order && in_layers && end == bytes.len()).then_some(Self { terms, bytes })
    }

    /// These terms with nothing but zeros.
    #[cfg(test)]
    pub(crate) fn of_zeros(mut terms: Vec<DeviceTerm>, layers: usize) -> Self {
        let bytes = terms.clone().iter_mut().try_fold(0, |at, term| term.place(at)).unwrap();
        terms.iter_mut().for_each(|term| term.a = 0);
        Self::new(terms, vec![0; bytes], layers).unwrap()
    }

    /// These terms with small numbers out of a seed; `None` as [`Self::new`].
    pub(super) fn of_noise(terms: Vec<DeviceTerm>, layers: usize, seed: u64) -> Option<Self> {
        let bytes = terms.clone().iter_mut().try_fold(0, |at, term| term.place(at))?;
        Self::new(terms, crate::generated::small_bf16(seed, bytes), layers)
    }

    pub(crate) fn terms(&self) -> &[DeviceTerm] {
        &self.terms
    }

    /// Everything, as it lies.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Rows `first .. first + rows` of a term's A, which are contiguous.
    pub(crate) fn a_rows(&self, term: &DeviceTerm, first: usize, rows: usize) -> &[u8] {
        let row = term.inputs * FACTOR_BYTES;
        self.bytes.get(term.a + first * row..).and_then(|bytes| bytes.get(..rows * row)).unwrap_or_default()
    }

    /// Columns `first .. first + columns` of a term's B, appended row by row.
    pub(crate) fn copy_b_columns(&self, term: &DeviceTerm, first: usize, columns: usize, to: &mut [u8]) {
        let (row, part) = (term.rank * FACTOR_BYTES, columns * FACTOR_BYTES);
        let b = self.bytes.get(term.b..).and_then(|bytes| bytes.get(..term.outputs * row)).unwrap_or_default();
        for (to, from) in to.chunks_exact_mut(part).zip(b.chunks_exact(row)) {
            to.copy_from_slice(&from[first * FACTOR_BYTES..][..part]);
        }
    }

    /// A term's growth, if it has one.
    pub(crate) fn growth(&self, term: &DeviceTerm) -> Option<&[u8]> {
        self.bytes.get(term.growth?..)?.get(..term.outputs * size_of::<f32>())
    }
}

fn write_term(PackedTerm { pair, growth, .. }: &PackedTerm, placed: &DeviceTerm, bytes: &mut [u8]) {
    let mut put = |at: usize, value: f32| {
        let rounded = bf16::from_f32(value).to_le_bytes();
        bytes[at..at + FACTOR_BYTES].copy_from_slice(&rounded);
    };
    for (place, value) in pair.a().iter().enumerate() {
        put(placed.a + place * FACTOR_BYTES, *value);
    }
    for (rank, row) in pair.b().chunks_exact(pair.outputs()).enumerate() {
        for (output, value) in row.iter().enumerate() {
            put(placed.b + (output * placed.rank + rank) * FACTOR_BYTES, *value);
        }
    }
    if let (Some(at), Some(growth)) = (placed.growth, growth) {
        for (place, value) in growth.iter().enumerate() {
            bytes[at + place * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::LoraPair;

    use super::*;

    fn term(rank: usize, inputs: usize, outputs: usize, grows: bool) -> PackedTerm {
        let values = |count: usize| (1..=count).map(|value| value as f32).collect::<Vec<_>>();
        let pair = LoraPair::new(rank, inputs, outputs, values(rank * inputs), values(rank * outputs)).unwrap();
        PackedTerm { pair, scale: 0.5, growth: grows.then(|| values(outputs).into()) }
    }

    fn numbers(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()
    }

    #[test]
    fn factors_are_padded_and_b_is_turned_around() {
        let mut layers: Vec<[Option<PackedTerm>; 7]> = (0..2).map(|_| Default::default()).collect();
        layers[1][Module::K.index()] = Some(term(3, 16, 2, true));
        layers[1][Module::Down.index()] = Some(term(8, 32, 4, false));
        let factors = DeviceFactors::pack(&layers);
        let [k, down] = factors.terms() else { panic!("two terms") };
        assert_eq!((k.layer, k.module, k.rank, k.inputs, k.outputs), (1, Module::K, 8, 16, 2));
        assert_eq!((down.rank, down.growth), (8, None));
        let a = numbers(factors.a_rows(k, 0, 8));
        assert_eq!(a[..48], (1..=48).map(|value| value as f32).collect::<Vec<_>>());
        assert!(a[48..].iter().all(|value| *value == 0.0), "padded");
        assert_eq!(numbers(factors.a_rows(k, 2, 1)), a[32..48]);
        let mut b = vec![9; 2 * 8 * 2];
        factors.copy_b_columns(k, 0, 8, &mut b);
        // Of [rank, outputs] = [[1, 2], [3, 4], [5, 6]].
        assert_eq!(numbers(&b), [1.0, 3.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let growth = factors.growth(k).unwrap();
        assert_eq!(growth.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>(), [1.0, 2.0]);
        assert!([k.a, k.b, k.growth.unwrap(), down.a, down.b].iter().all(|at| at.is_multiple_of(16)));
    }

    #[test]
    fn terms_that_do_not_fit_their_bytes_are_refused() {
        let mut layers: Vec<[Option<PackedTerm>; 7]> = vec![Default::default()];
        layers[0][Module::Q.index()] = Some(term(2, 16, 4, true));
        let factors = DeviceFactors::pack(&layers);
        let terms = || vec![DeviceTerm::new(0, Module::Q, 8, (16, 4), 0.5, true)];
        let bytes = || factors.bytes().to_vec();
        let again = DeviceFactors::new(terms(), bytes(), 1).unwrap();
        assert_eq!(again.terms(), factors.terms());
        assert!(DeviceFactors::new(terms(), bytes()[1..].to_vec(), 1).is_none());
        assert!(DeviceFactors::new(terms(), bytes(), 0).is_none());
        assert!(DeviceFactors::new([terms(), terms()].concat(), [bytes(), bytes()].concat(), 1).is_none());
        let wrong = |rank| vec![DeviceTerm::new(0, Module::Q, rank, (16, 4), 0.5, true)];
        assert!([0, 4, usize::MAX & !7].into_iter().all(|rank| DeviceFactors::new(wrong(rank), bytes(), 1).is_none()));
    }
}
