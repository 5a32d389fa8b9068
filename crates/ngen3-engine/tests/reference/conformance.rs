//! The conformance check itself: the reference passes it, and engines with one thing wrong do not.

use ngen3_engine::reference::ReferenceDevice;
use ngen3_engine::reference::conformance::{Case, Tolerance, cases, check};
use ngen3_engine::{Device, Dtype, Error, Options, Quant, Slot, Workload};
use ngen3_model::{Config, Lora, LoraList, ParamList};

use crate::faulty::{Fault, Faulty};

/// Every part that is compared.
const ALL: [&str; 8] = ["losses", "training", "updates", "muon", "shares", "adapters", "distillation", "decoding"];

#[test]
fn the_reference_conforms_to_itself() {
    let exact = Tolerance { loss: 0.0, gradient: 0.0 };
    for case in cases() {
        let compared = check(&ReferenceDevice, Options::default(), exact, &case).expect("the same engine");
        let continues = case.batch.sequences.iter().any(|sequence| sequence.continues);
        assert_eq!(compared, if continues { &ALL[..1] } else { &ALL[..] }, "{}", case.name);
    }
}

/// The case that this test's faults are looked for in: small, with dropout, ignored targets and sequences of several lengths.
const CASE: &str = "uneven sequences, ignored targets, dropout";

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).expect("a case")
}

/// Holds the message for a fault, in a case, to its part and what it says of it.
fn assert_found(fault: Fault, case: &Case, expected: &str) {
    let expected = format!("{}, {expected}", case.name);
    match check(&Faulty(fault), Options::default(), Tolerance::F32, case) {
        Ok(_) => panic!("{fault:?} is not found; expected \"{expected}\""),
        Err(found) => assert!(found.starts_with(&expected), "{fault:?}: {found}, not {expected}"),
    }
}

#[test]
fn every_fault_is_found_and_named() {
    let uneven = case(CASE);
    let compared =
        |fault| check(&Faulty(fault), Options::default(), Tolerance::F32, &uneven).expect("nothing is wrong");
    assert_eq!(compared(Fault::Nothing), ALL);
    assert_eq!(compared(Fault::Unsupported), ["losses", "training", "updates", "muon", "shares", "decoding"]);
    for (fault, expected) in [
        (Fault::Loss, "losses: losses by"),
        (Fault::IgnoredLoss, "losses: the loss of an ignored target is"),
        (Fault::MeanLoss, "losses: the mean loss by"),
        (Fault::JoinedSequences, "losses: losses by"),
        (Fault::TrainingLoss, "training: the training loss by"),
        (Fault::Dropout, "training: the training loss by"),
        (Fault::Weight, "training: transformer.wte.weight by"),
        (Fault::GradientsOverwritten, "training: transformer.wte.weight by"),
        (Fault::ReadyTooEarly, "training: transformer.wte.weight by"),
        (Fault::ReadyBackwards, "training: gradients 0..1 are given as final before those from"),
        (Fault::NoBiasCorrection, "updates: Params by"),
        (Fault::NoClipping, "updates: Params by"),
        (Fault::ClippedUpwards, "updates: Params by"),
        (Fault::NoDecay, "updates: Params by"),
        (Fault::BiasesDecay, "updates: Params by"),
        (Fault::MuonIgnored, "muon: ExpAvg by"),
        (Fault::ShareIgnored, "shares: "),
        (Fault::MomentForgotten, "updates: Params by"),
        (Fault::InfiniteApplied, "updates: Params by"),
        (Fault::InfiniteKept, "updates: Grads by"),
        (Fault::GradientsKept, "updates: Grads by"),
        (Fault::ClippedNorm, "updates: the gradient's norm by"),
        (Fault::WriteIgnored(Slot::Params), "updates: losses of written parameters by"),
        (Fault::WriteIgnored(Slot::Grads), "updates: the gradient's norm by"),
        (Fault::WriteIgnored(Slot::ExpAvg), "updates: Params by"),
        (Fault::WriteIgnored(Slot::ExpAvgSq), "updates: Params by"),
        (Fault::StaleAfterUpdate, "updates: losses of updated parameters by"),
        (Fault::StaleAfterWrite, "updates: losses of written parameters by"),
        (Fault::AdaptersNoDecay, "adapters: Params by"),
        (Fault::StaleAdapters, "adapters: losses by"),
        (Fault::MergedUnscaled, "adapters: merged parameters by"),
        (Fault::MergeUnscaled, "adapters: parameters once merged by"),
        (Fault::MergedFrozen, "adapters: transformer.wte.weight by"),
        (Fault::AdaptersDecode, "adapters: a model with adapters decodes"),
        (Fault::DivergenceLoss, "distillation: losses without a gradient by"),
        (Fault::DistillCrossEntropy, "distillation: losses without a gradient by"),
        (Fault::DistillTrainingLoss, "distillation: losses with a gradient by"),
        (Fault::DivergenceWeight, "distillation: transformer.wte.weight by"),
        (Fault::DivergenceGradient, "distillation: transformer.wte.weight by"),
        (Fault::DistillWeight, "distillation: transformer.wte.weight by"),
        (Fault::DistillOverwrites, "distillation: transformer.wte.weight by"),
        (Fault::TopKWithoutRest, "distillation: losses without a gradient by"),
        (Fault::TopKTemperature, "distillation: the teacher's log probabilities by"),
        (Fault::TopKIds, "distillation: the log probabilities of the teacher's tokens by"),
        (Fault::SeesAnother, "decoding: logits by"),
        (Fault::ClearKeeps, "decoding: logits by"),
        (Fault::ClearCounts, "decoding: sequence 1 has 1 tokens, not 0"),
        (Fault::FeedOrder, "decoding: logits by"),
        (Fault::StaleDecoder, "decoding: logits by"),
        (Fault::RefusedInPart, "decoding: sequence 1 has 5 tokens, not 0"),
        (Fault::AcceptsNoSequences, "decoding: a decoder of no sequences"),
        (Fault::AcceptsNoFeeds, "decoding: no feeds accepted"),
        (Fault::AcceptsNoTokens, "decoding: a feed without tokens accepted"),
        (Fault::AcceptsTwice, "decoding: two feeds of one sequence accepted"),
        (Fault::AcceptsUnknownSequence, "decoding: a sequence that does not exist accepted"),
        (Fault::AcceptsUnknownToken, "decoding: a token outside the vocabulary accepted"),
        (Fault::AcceptsPastBlock, "decoding: 42 tokens in a block of 40"),
        (Fault::AcceptsOneMore, "decoding: 41 tokens in a block of 40"),
        (Fault::AcceptsFull, "decoding: a token accepted by a full cache"),
        (Fault::CountsPages, "decoding: 1 pages of a full cache are free"),
        (Fault::SharesWrongly, "decoding: logits of a shared page by"),
    ] {
        assert_found(fault, &uneven, expected);
    }
    let continued = case("sequences that continue another");
    assert_found(Fault::ContinuedAlone, &continued, "losses: losses by");
}

#[test]
fn a_thousandth_more_in_the_gradient_of_any_parameter_is_found() {
    let uneven = case(CASE);
    for (number, param) in ParamList::new(&uneven.config).iter().enumerate() {
        assert_found(Fault::Gradient(number), &uneven, &format!("training: {} by", param.name()));
    }
    let lora = Lora { rank: 3, alpha: 1.5, targets: "c_attn,c_proj,c_fc".parse().expect("targets") };
    for (number, param) in LoraList::new(&uneven.config, &lora).expect("an adapter").iter().enumerate() {
        assert_found(Fault::AdapterGradient(number), &uneven, &format!("adapters: {} by", param.name()));
    }
}

#[test]
fn the_device_computes_in_f32_alone_and_counts_its_memory() {
    let config = Config::new(2, 3, 12, 5, 97);
    let params = ParamList::new(&config).init(1);
    let open = |options| ReferenceDevice.open(config.clone(), params.clone(), options);
    assert!(open(Options { dtype: Dtype::F32, threads: 7, recompute: true, ..Options::default() }).is_ok());
    assert!(matches!(open(Options { dtype: Dtype::Bf16, ..Options::default() }), Err(Error::Input(_))));
    assert!(matches!(open(Options { quant: Quant::Int8, ..Options::default() }), Err(Error::Unsupported(_))));
    assert!(ReferenceDevice.open(config.clone(), vec![0.0; 3], Options::default()).is_err(), "too few parameters");
    let odd = Config { n_head: 5, ..config.clone() };
    assert!(ReferenceDevice.open(odd, params.clone(), Options::default()).is_err(), "12 / 5");

    let bytes = |workload| ReferenceDevice.memory(&config, workload, Options::default());
    let [none, thin] = [0, 1].map(|rank| Lora { rank, alpha: 1.0, targets: Default::default() });
    let whole = bytes(Workload::Train { batch_size: 4 }).expect("a workload");
    assert!(whole > 16 * params.len() as u64);
    assert!(bytes(Workload::Train { batch_size: 8 }).expect("a workload") > whole);
    assert!(bytes(Workload::Adapt { batch_size: 4, lora: &thin }).expect("a workload") < whole);
    assert!(bytes(Workload::Adapt { batch_size: 4, lora: &none }).is_err());
    let distill = Workload::Distill { batch_size: 4, teacher: &config, quant: Quant::None };
    assert!(bytes(distill).expect("a workload") > whole && bytes(Workload::Sample).expect("a workload") < whole);
    assert!(ReferenceDevice.product_gflops(Dtype::F32, 1, [3, 5, 7]).expect("a rate") > 0.0);
    assert!(ReferenceDevice.product_gflops(Dtype::Bf16, 1, [3, 5, 7]).is_err());
}
