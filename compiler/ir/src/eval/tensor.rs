//! Tensors of the reference evaluation.

use std::sync::Arc;

use super::{CacheState, EvalError};
use crate::scheme::Matrix;

/// The data of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Plain floats.
    F32(Vec<f32>),
    /// Integers.
    I32(Vec<i32>),
    /// A weight matrix; shared, so that a clone costs nothing.
    Matrix(Arc<Matrix>),
    /// A quantized activation.
    Act {
        /// Codes, -127 to 127.
        codes: Vec<i8>, // [M, K]
        /// Scales.
        scales: Vec<f32>, // [M, K/group]
        /// Elements that share a scale.
        group: usize,
    },
    /// A cache.
    Cache(CacheState),
}

/// A value during evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Shape, outermost first; empty for a cache.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data,
}

impl Tensor {
    /// A float tensor.
    pub fn f32(shape: Vec<usize>, values: Vec<f32>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Tensor { shape, data: Data::F32(values) }
    }

    /// An integer tensor.
    pub fn i32(shape: Vec<usize>, values: Vec<i32>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Tensor { shape, data: Data::I32(values) }
    }

    /// A weight matrix.
    pub fn matrix(matrix: impl Into<Arc<Matrix>>) -> Tensor {
        let matrix = matrix.into();
        Tensor { shape: vec![matrix.rows, matrix.cols], data: Data::Matrix(matrix) }
    }

    /// A cache.
    pub fn cache(state: CacheState) -> Tensor {
        Tensor { shape: Vec::new(), data: Data::Cache(state) }
    }

    /// The first dimension; 0 for a cache.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// The last dimension; 0 for a cache.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// The elements of a float tensor.
    pub fn as_f32(&self) -> Result<&[f32], EvalError> {
        match &self.data {
            Data::F32(values) => Ok(values),
            other => Err(EvalError::Kind { expected: "f32", found: other.kind() }),
        }
    }

    /// The elements of an integer tensor.
    pub fn as_i32(&self) -> Result<&[i32], EvalError> {
        match &self.data {
            Data::I32(values) => Ok(values),
            other => Err(EvalError::Kind { expected: "i32", found: other.kind() }),
        }
    }

    /// A weight matrix.
    pub fn as_matrix(&self) -> Result<&Matrix, EvalError> {
        match &self.data {
            Data::Matrix(matrix) => Ok(matrix),
            other => Err(EvalError::Kind { expected: "weight", found: other.kind() }),
        }
    }

    /// A cache.
    pub fn as_cache(&self) -> Result<&CacheState, EvalError> {
        match &self.data {
            Data::Cache(state) => Ok(state),
            other => Err(EvalError::Kind { expected: "cache", found: other.kind() }),
        }
    }

    /// The values of a float tensor, or those that a quantized activation stands for (`code · scale`, rounded to f32).
    pub fn dequantized(&self) -> Result<Vec<f32>, EvalError> {
        match &self.data {
            Data::F32(values) => Ok(values.clone()),
            Data::Act { codes, scales, group } => {
                Ok(codes.iter().enumerate().map(|(i, &code)| f32::from(code) * scales[i / group]).collect())
            }
            other => Err(EvalError::Kind { expected: "f32 or int8 activation", found: other.kind() }),
        }
    }
}

impl Data {
    fn kind(&self) -> &'static str {
        match self {
            Data::F32(_) => "f32",
            Data::I32(_) => "i32",
            Data::Matrix(_) => "weight",
            Data::Act { .. } => "int8 activation",
            Data::Cache(_) => "cache",
        }
    }
}
