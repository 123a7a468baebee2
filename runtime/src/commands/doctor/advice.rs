//! What to change, concluded from facts alone.

use super::facts::{Facts, PlanFacts};

/// Sentences for people, the gravest first. None means that all is well.
pub fn advise(facts: &Facts, plan: Option<&PlanFacts>) -> Vec<String> {
    let mut advice = Vec::new();
    if !facts.runs_plans() {
        advice.push(
            "This CPU lacks AVX2, FMA or F16C, which every plan for CPUs needs: use another machine, or a GPU."
                .to_owned(),
        );
    }
    if let Some(plan) = plan {
        if !plan.runs() {
            let targets: Vec<&str> = plan.targets.iter().map(|target| target.target.as_str()).collect();
            advice.push(format!(
                "Recompile the plan: it holds code for {} only. `lathe compile MODEL --target native` on this machine, or \
                 --target all-cpu for a plan that runs on every CPU with AVX2.",
                targets.join(", ")
            ));
        }
        advice.extend(plan.too_large.as_ref().map(|problem| format!("Make room: {problem}.")));
        let better = plan.chosen.as_ref().and_then(|chosen| faster(facts, chosen));
        advice.extend(better);
    }
    if let Some(quota) = facts.quota.filter(|&quota| quota < facts.cores as f64) {
        advice.push(format!(
            "Raise the container's CPU quota: it is {quota:.2} CPUs, and there are {} cores. Until then {} of them work.",
            facts.cores, facts.threads
        ));
    }
    if facts.huge_pages.as_deref() == Some("never") {
        advice.push(
            "Allow huge pages, which make reading weights and caches 3 to 16 % faster: echo madvise > \
             /sys/kernel/mm/transparent_hugepage/enabled"
                .to_owned(),
        );
    }
    if facts.governor.as_deref() == Some("powersave") {
        advice.push(
            "Let the CPU run at its full frequency: echo performance into scaling_governor of \
             /sys/devices/system/cpu/cpu*/cpufreq."
                .to_owned(),
        );
    }
    advice
}

/// What the CPU has and the chosen code of a plan leaves idle.
fn faster(facts: &Facts, chosen: &str) -> Option<String> {
    let idle = |feature: &str, part: &str| facts.features.contains(&feature) && !chosen.contains(part);
    let is_cpu = chosen.starts_with("x86-64");
    let what = if is_cpu && idle("avx512f", "v4") {
        "AVX-512"
    } else if is_cpu && (idle("avx512_vnni", "vnni") || (chosen.contains("v3") && idle("avx_vnni", "vnni"))) {
        "VNNI"
    } else if is_cpu && idle("avx512_bf16", "bf16") {
        "BF16"
    } else {
        return None;
    };
    Some(format!("Recompile with --target native for speed: this CPU has {what}, which {chosen} does not use."))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Gpu, TargetFacts};
    use super::*;

    fn sound() -> Facts {
        Facts {
            cpu: "C".into(),
            features: vec!["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16"],
            cpus: 8,
            cores: 4,
            quota: None,
            threads: 4,
            governor: Some("performance".into()),
            memory: Some(1 << 34),
            memory_left: Some(1 << 33),
            huge_pages: Some("madvise".into()),
            gpu: Gpu { name: None, capability: None, problem: Some("no driver".into()) },
        }
    }

    fn plan(target: &str, problem: Option<&str>) -> PlanFacts {
        PlanFacts {
            targets: vec![TargetFacts { target: target.into(), problem: problem.map(str::to_owned) }],
            chosen: if problem.is_none() { Some(target.into()) } else { None },
            needs: 1 << 20,
            too_large: None,
        }
    }

    /// The one piece of advice, which must say this.
    fn check(facts: &Facts, plan: Option<&PlanFacts>, hint: &str) {
        let advice = advise(facts, plan);
        assert!(advice.len() == 1 && advice[0].contains(hint), "{hint}: {advice:?}");
    }

    #[test]
    fn a_sound_machine_gets_none() {
        assert_eq!(advise(&sound(), None), [""; 0]);
        assert_eq!(advise(&sound(), Some(&plan("x86-64-v4+vnni+bf16", None))), [""; 0]);
        assert_eq!(advise(&sound(), Some(&plan("sm_80", None))), [""; 0]);
        assert_eq!(advise(&Facts { quota: Some(4.0), ..sound() }, None), [""; 0]);
    }

    #[test]
    fn each_fault_has_a_remedy() {
        check(&Facts { features: vec!["avx2"], ..sound() }, None, "another machine");
        check(&Facts { quota: Some(1.5), threads: 1, ..sound() }, None, "1.50 CPUs, and there are 4 cores");
        check(&Facts { huge_pages: Some("never".into()), ..sound() }, None, "echo madvise");
        check(&Facts { governor: Some("powersave".into()), ..sound() }, None, "echo performance");
        check(&sound(), Some(&plan("sm_80", Some("no driver"))), "code for sm_80 only");
        check(&sound(), Some(&plan("x86-64-v3", None)), "AVX-512");
        check(&sound(), Some(&plan("x86-64-v4", None)), "VNNI");
        check(&sound(), Some(&plan("x86-64-v4+vnni", None)), "BF16");
        let large = PlanFacts { too_large: Some("the plan needs 9 GiB".into()), ..plan("x86-64-v4+vnni+bf16", None) };
        check(&sound(), Some(&large), "Make room: the plan needs 9 GiB");
    }
}
