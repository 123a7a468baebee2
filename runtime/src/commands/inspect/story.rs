//! What there is to tell about a plan, as data.

use std::collections::BTreeMap;
use std::path::Path;

use lathe_plan::{
    Affine, Bucket, CacheGroup, Launch, Manifest, PackedTokenizer, Plan, Program, Retention, Share, StepSize, TokenKind,
};
use serde::Serialize;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Story {
    pub file: String,
    pub bytes: u64,
    pub format: String,
    pub runtime_abi: u32,
    /// The digest that stands for the whole plan.
    pub root: String,
    /// What weights are made from when the plan is loaded, where they are not in it.
    pub random_weights: Option<u64>,
    pub manifest: Option<Manifest>,
    pub schemes: Vec<SchemeStory>,
    pub programs: Vec<ProgramStory>,
    pub tokenizer: Option<TokenizerStory>,
    pub chat_template: Option<String>,
    pub generation_config: Option<String>,
    pub licence_text: Option<String>,
    pub reports: Vec<String>,
    pub sections: Vec<SectionStory>,
}

/// The tensors that are stored in one way.
#[derive(Debug, Serialize)]
pub struct SchemeStory {
    pub scheme: String,
    pub tensors: usize,
    pub bytes: u64,
    /// The greatest relative error of a tensor; `None` where one is not finite.
    pub max_error: Option<f64>,
}

/// A program.
#[derive(Debug, Serialize)]
pub struct ProgramStory {
    pub name: String,
    pub vocabulary: u32,
    pub max_context: u32,
    pub inputs: Vec<String>,
    pub codes: Vec<CodeStory>,
    pub weights: usize,
    pub weight_bytes: u64,
    pub caches: Vec<CacheStory>,
    pub kernels: Vec<KernelStory>,
    pub buckets: Vec<BucketStory>,
}

/// Machine code for a target.
#[derive(Debug, Serialize)]
pub struct CodeStory {
    pub target: String,
    pub features: Vec<String>,
    pub layout: String,
    pub bytes: usize,
}

/// A cache group.
#[derive(Debug, Serialize)]
pub struct CacheStory {
    pub name: String,
    pub tensors: usize,
    pub page_tokens: u32,
    pub retention: String,
    pub bytes_per_token: f64,
    pub bytes_at_max_context: u64,
}

/// A kernel.
#[derive(Debug, Serialize)]
pub struct KernelStory {
    pub name: String,
    pub recipe: String,
    pub operands: usize,
    pub params: u32,
}

/// A bucket.
#[derive(Debug, Serialize)]
pub struct BucketStory {
    pub max: SizeStory,
    pub arena_bytes: u64,
    pub scratch_bytes: u64,
    pub barriers: usize,
    /// What typical steps take: one sequence that decodes (smallest bucket) or prefills (the others), and the largest.
    pub steps: Vec<StepStory>,
    pub launches: Vec<LaunchStory>,
}

/// The size of a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SizeStory {
    pub tokens: u32,
    pub sequences: u32,
    pub rows: u32,
}

/// What a step takes.
#[derive(Debug, Serialize)]
pub struct StepStory {
    pub size: SizeStory,
    pub flops: u64,
    pub bytes: u64,
    pub kernels: Vec<KernelUseStory>,
}

/// What the launches of one kernel take in a step.
#[derive(Debug, Serialize)]
pub struct KernelUseStory {
    pub kernel: String,
    pub launches: usize,
    pub flops: u64,
    pub bytes: u64,
}

/// A launch.
#[derive(Debug, Serialize)]
pub struct LaunchStory {
    pub kernel: String,
    pub units: String,
    pub share: String,
    pub barrier: bool,
    pub flops: String,
    pub bytes: String,
}

/// The tokenizer.
#[derive(Debug, Serialize)]
pub struct TokenizerStory {
    pub model: String,
    pub pretokenizer: String,
    pub tokens: usize,
    pub control_tokens: usize,
    pub merges: usize,
    pub bos: Option<TokenStory>,
    pub eos: Vec<TokenStory>,
    pub add_bos: bool,
}

/// A token.
#[derive(Debug, Serialize)]
pub struct TokenStory {
    pub id: u32,
    pub text: String,
}

/// A section of the file.
#[derive(Debug, Serialize)]
pub struct SectionStory {
    pub kind: String,
    pub name: String,
    pub target: String,
    pub layout: String,
    pub offset: u64,
    pub bytes: u64,
    pub digest: String,
}

impl Story {
    /// Reads it off a plan.
    pub fn of(path: &Path, plan: &Plan) -> Story {
        Story {
            file: path.display().to_string(),
            bytes: plan.length(),
            format: format!("{}.{}", lathe_plan::format::MAJOR, plan.minor()),
            runtime_abi: lathe_plan::RUNTIME_ABI,
            root: hex(&plan.root()),
            random_weights: plan.seed(),
            schemes: plan.manifest().map(schemes).unwrap_or_default(),
            manifest: plan.manifest().cloned(),
            programs: plan.programs().iter().map(|program| ProgramStory::of(plan, program)).collect(),
            tokenizer: plan.tokenizer().map(TokenizerStory::of),
            chat_template: plan.chat_template().map(str::to_owned),
            generation_config: plan.generation_config().map(str::to_owned),
            licence_text: plan.licence().map(str::to_owned),
            reports: plan.reports().map(|(name, _)| name.to_owned()).collect(),
            sections: plan
                .sections()
                .iter()
                .map(|section| SectionStory {
                    kind: section.kind.to_string(),
                    name: section.name.clone(),
                    target: section.target.clone(),
                    layout: section.layout.clone(),
                    offset: section.offset,
                    bytes: section.length,
                    digest: hex(&section.digest),
                })
                .collect(),
        }
    }
}

/// The greatest of errors; `None` where one is not finite, for that is the worst.
pub fn largest(errors: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    errors.into_iter().try_fold(0.0, |most: f64, error| Some(most.max(error?)))
}

fn schemes(manifest: &Manifest) -> Vec<SchemeStory> {
    let mut schemes: BTreeMap<&str, SchemeStory> = BTreeMap::new();
    for tensor in &manifest.tensors {
        let new = || SchemeStory { scheme: tensor.scheme.clone(), tensors: 0, bytes: 0, max_error: Some(0.0) };
        let scheme = schemes.entry(&tensor.scheme).or_insert_with(new);
        scheme.tensors += 1;
        scheme.bytes = scheme.bytes.saturating_add(tensor.bytes);
        scheme.max_error = largest([scheme.max_error, tensor.error]);
    }
    schemes.into_values().collect()
}

impl ProgramStory {
    fn of(plan: &Plan, program: &Program) -> ProgramStory {
        ProgramStory {
            name: program.name.clone(),
            vocabulary: program.vocabulary,
            max_context: program.max_context,
            inputs: program.inputs.iter().map(|input| format!("{input:?}")).collect(),
            codes: plan
                .codes(&program.name)
                .map(|code| CodeStory {
                    target: code.object.target.clone(),
                    features: code.object.features.clone(),
                    layout: code.layout.clone(),
                    bytes: code.object.code.len(),
                })
                .collect(),
            weights: program.weights.len(),
            weight_bytes: program.weights.iter().fold(0, |sum, weight| sum.saturating_add(weight.bytes)),
            caches: program.cache_groups.iter().map(|group| cache(group, program.max_context)).collect(),
            kernels: program
                .kernels
                .iter()
                .map(|kernel| KernelStory {
                    name: kernel.name.clone(),
                    recipe: kernel.recipe.clone(),
                    operands: kernel.operands.len(),
                    params: kernel.params,
                })
                .collect(),
            buckets: program.buckets.iter().map(|bucket| BucketStory::of(program, bucket)).collect(),
        }
    }
}

fn cache(group: &CacheGroup, max_context: u32) -> CacheStory {
    let page_bytes = group.tensors.iter().fold(0u64, |sum, tensor| sum.saturating_add(tensor.page_bytes));
    let page_tokens = group.page_tokens.max(1);
    let kept = match group.retention {
        Retention::All => max_context,
        Retention::Window { tokens } => tokens.min(max_context),
    };
    CacheStory {
        name: group.name.clone(),
        tensors: group.tensors.len(),
        page_tokens: group.page_tokens,
        retention: match group.retention {
            Retention::All => "all".to_owned(),
            Retention::Window { tokens } => format!("window of {tokens}"),
        },
        bytes_per_token: page_bytes as f64 / f64::from(page_tokens),
        bytes_at_max_context: page_bytes.saturating_mul(u64::from(kept.div_ceil(page_tokens))),
    }
}

impl BucketStory {
    fn of(program: &Program, bucket: &Bucket) -> BucketStory {
        let is_smallest = program.buckets.first() == Some(bucket);
        let single = StepSize { tokens: if is_smallest { 1 } else { bucket.max.tokens }, sequences: 1, rows: 1 };
        let sizes = [single, bucket.max].into_iter().skip(usize::from(bucket.max == single));
        BucketStory {
            max: size(bucket.max),
            arena_bytes: bucket.arena_bytes,
            scratch_bytes: bucket.scratch_bytes,
            barriers: bucket.launches.iter().filter(|launch| launch.barrier).count(),
            steps: sizes.map(|at| step(program, bucket, at)).collect(),
            launches: bucket
                .launches
                .iter()
                .map(|launch| LaunchStory {
                    kernel: kernel_name(program, launch),
                    units: affine(launch.units),
                    share: match launch.share {
                        Share::Even => "even".to_owned(),
                        Share::Claim { grain } => format!("claim {grain}"),
                    },
                    barrier: launch.barrier,
                    flops: affine(launch.flops),
                    bytes: affine(launch.bytes),
                })
                .collect(),
        }
    }
}

fn step(program: &Program, bucket: &Bucket, at: StepSize) -> StepStory {
    let value = |amount: &Affine| amount.eval(at).unwrap_or(u64::MAX);
    let mut kernels: Vec<KernelUseStory> = Vec::new();
    for launch in &bucket.launches {
        let kernel = kernel_name(program, launch);
        let index = kernels.iter().position(|entry| entry.kernel == kernel).unwrap_or(kernels.len());
        if index == kernels.len() {
            kernels.push(KernelUseStory { kernel, launches: 0, flops: 0, bytes: 0 });
        }
        let entry = &mut kernels[index];
        entry.launches += 1;
        entry.flops = entry.flops.saturating_add(value(&launch.flops));
        entry.bytes = entry.bytes.saturating_add(value(&launch.bytes));
    }
    StepStory {
        size: size(at),
        flops: kernels.iter().fold(0, |sum, entry| sum.saturating_add(entry.flops)),
        bytes: kernels.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes)),
        kernels,
    }
}

fn kernel_name(program: &Program, launch: &Launch) -> String {
    program.kernels.get(launch.kernel as usize).map(|kernel| kernel.name.clone()).unwrap_or_default()
}

fn size(size: StepSize) -> SizeStory {
    SizeStory { tokens: size.tokens, sequences: size.sequences, rows: size.rows }
}

/// An amount as it is written in the design: `576·T + 64`.
pub fn affine(amount: Affine) -> String {
    let terms = [(amount.t, "T"), (amount.s, "S"), (amount.r, "R")];
    let mut parts: Vec<String> = terms
        .iter()
        .filter(|(factor, _)| *factor > 0)
        .map(|(factor, symbol)| if *factor == 1 { (*symbol).to_owned() } else { format!("{factor}·{symbol}") })
        .collect();
    if amount.c > 0 || parts.is_empty() {
        parts.push(amount.c.to_string());
    }
    parts.join(" + ")
}

impl TokenizerStory {
    fn of(tables: &PackedTokenizer) -> TokenizerStory {
        let token = |id: u32| {
            let text = String::from_utf8_lossy(tables.token(id).unwrap_or_default()).into_owned();
            TokenStory { id, text }
        };
        TokenizerStory {
            model: format!("{:?}", tables.model).to_lowercase(),
            pretokenizer: tables.pretokenizer.clone(),
            tokens: tables.len(),
            control_tokens: tables.kinds().filter(|kind| *kind == TokenKind::Control).count(),
            merges: tables.merge_count(),
            bos: tables.bos.map(token),
            eos: tables.eos.iter().map(|id| token(*id)).collect(),
            add_bos: tables.add_bos,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

#[cfg(test)]
mod tests {
    use lathe_plan::manifest::Tensor;

    use super::*;

    #[test]
    fn amounts_read_as_formulas() {
        assert_eq!(affine(Affine { t: 576, s: 1, r: 0, c: 64 }), "576·T + S + 64");
        assert_eq!(affine(Affine::default()), "0");
        assert_eq!(affine(Affine { r: 2, ..Affine::default() }), "2·R");
    }

    #[test]
    fn one_error_that_is_not_finite_is_the_greatest() {
        let tensor = |scheme: &str, error| Tensor { scheme: scheme.to_owned(), error, ..Tensor::default() };
        let tensors = vec![
            tensor("f16", Some(0.0)),
            tensor("f16", None),
            tensor("int8", Some(0.25)),
            tensor("int8", Some(0.5)),
            tensor("f32", Some(0.0)),
        ];
        let schemes = schemes(&Manifest { tensors, ..Manifest::default() });
        let found: Vec<_> = schemes.iter().map(|scheme| (scheme.scheme.as_str(), scheme.max_error)).collect();
        assert_eq!(found, [("f16", None), ("f32", Some(0.0)), ("int8", Some(0.5))]);
    }

    #[test]
    fn digests_are_hexadecimal() {
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
    }

    #[test]
    fn a_cache_is_counted_in_whole_pages() {
        let tensor = |name: &str| lathe_plan::CacheTensor { name: name.to_owned(), page_bytes: 1600 };
        let group = CacheGroup {
            name: "kv".to_owned(),
            page_tokens: 16,
            retention: Retention::Window { tokens: 40 },
            tensors: vec![tensor("kv.0"), tensor("kv.1")],
        };
        let story = cache(&group, 1000);
        assert_eq!(story.bytes_at_max_context, 3 * 3200);
        assert!((story.bytes_per_token - 200.0).abs() < 1e-9, "{}", story.bytes_per_token);
    }
}
