//! The conformance check itself: the reference passes it, and engines with one thing wrong do not.

use std::borrow::Cow;

use ngen3_engine::reference::ReferenceDevice;
use ngen3_engine::reference::conformance::{Case, Tolerance, cases, check};
use ngen3_engine::{
    AdamW, Backward, Batch, Decoder, Device, Dtype, Error, Model, Options, Quant, Slot, Teacher, Trainer, Workload,
};
use ngen3_model::{Config, Lora, ParamList};

#[test]
fn the_reference_conforms_to_itself() {
    let all = ["losses", "training", "updates", "adapters", "distillation", "decoding"];
    let exact = Tolerance { loss: 0.0, gradient: 0.0 };
    for case in cases() {
        let compared = check(&ReferenceDevice, Options::default(), exact, &case).expect("the same engine");
        let continues = case.batch.sequences.iter().any(|sequence| sequence.continues);
        assert_eq!(compared, if continues { &all[..1] } else { &all }, "{}", case.name);
    }
}

/// The reference with one thing wrong, and neither distillation nor adapters.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Losses,
    Dropout,
    Gradient,
    Update,
    Nothing,
}

struct Faulty(Fault);

struct FaultyTrainer(Fault, Box<dyn Trainer>);

impl Device for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn open(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Trainer>, Error> {
        Ok(Box::new(FaultyTrainer(self.0, ReferenceDevice.open(config, params, options)?)))
    }

    fn open_teacher(&self, config: Config, params: Vec<f32>, options: Options) -> Result<Box<dyn Teacher>, Error> {
        ReferenceDevice.open_teacher(config, params, options)
    }

    fn memory(&self, config: &Config, workload: Workload<'_>, options: Options) -> Result<u64, Error> {
        ReferenceDevice.memory(config, workload, options)
    }

    fn product_gflops(&self, dtype: Dtype, threads: usize, shape: [usize; 3]) -> Result<f64, Error> {
        ReferenceDevice.product_gflops(dtype, threads, shape)
    }
}

impl Model for FaultyTrainer {
    fn config(&self) -> &Config {
        self.1.config()
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let mut losses = self.1.losses(batch)?;
        if self.0 == Fault::Losses {
            losses[0] += 1e-3;
        }
        Ok(losses)
    }

    fn decoder(&self, sequences: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        self.1.decoder(sequences)
    }
}

impl Trainer for FaultyTrainer {
    fn forward_backward(&mut self, batch: &Batch, mut backward: Backward) -> Result<f32, Error> {
        if self.0 == Fault::Dropout {
            backward.seed += 1;
        }
        let loss = self.1.forward_backward(batch, backward)?;
        if self.0 == Fault::Gradient {
            let mut grads = self.1.read(Slot::Grads).into_owned();
            let last = ParamList::new(self.1.config()).ln_f_bias.start;
            grads[last] *= 1.01;
            self.1.write(Slot::Grads, &grads)?;
        }
        Ok(loss)
    }

    fn update(&mut self, adamw: &AdamW) -> Result<f32, Error> {
        let decay = if self.0 == Fault::Update { 0.0 } else { adamw.weight_decay };
        self.1.update(&AdamW { weight_decay: decay, ..*adamw })
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        self.1.read(slot)
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        self.1.write(slot, values)
    }
}

#[test]
fn an_engine_with_one_thing_wrong_does_not_conform() {
    let cases = cases();
    let case: &Case = cases.iter().find(|case| case.dropout > 0.0).expect("one with dropout");
    let check = |fault| check(&Faulty(fault), Options::default(), Tolerance::F32, case);
    // Without adapters and distillation the rest is compared.
    assert_eq!(check(Fault::Nothing).expect("nothing is wrong"), ["losses", "training", "updates", "decoding"]);
    for (fault, expected) in [
        (Fault::Losses, "losses: losses by 1.0"),
        (Fault::Dropout, "training: the training loss by"),
        (Fault::Gradient, "training: transformer.ln_f.bias by"),
        (Fault::Update, "updates: Params by"),
    ] {
        let found = check(fault).expect_err("something is wrong");
        assert!(found.contains(expected), "{found}, not {expected}");
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
