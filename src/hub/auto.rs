//! Which base `auto` takes: a pure function of what there is.

/// Mistral-7B-v0.3 in bitsandbytes' 4 bits: 4.1 GB.
pub const FOUR_BIT: &str = "unsloth/mistral-7b-v0.3-bnb-4bit";
/// The same in 16 bits: 14.5 GB.
pub const SIXTEEN_BIT: &str = "mistralai/Mistral-7B-v0.3";

/// Free GPU memory from which the model in 4 bits trains on texts of some hundred tokens.
pub const ROOM_FOUR_BIT: u64 = 7 << 30;
/// Free GPU memory from which it does unquantised.
pub const ROOM_SIXTEEN_BIT: u64 = 20 << 30;

/// What computes, and what room it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Cpu,
    Gpu { free_bytes: u64 },
}

/// All that the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    pub room: Room,
    /// Whether 16-bit linears are quantised when they are loaded.
    pub load_in_4bit: bool,
    /// Whether the 4-bit and the 16-bit model are whole in the cache.
    pub has_four_bit: bool,
    pub has_sixteen_bit: bool,
    /// The variable that forbids the network.
    pub offline: Option<&'static str>,
    /// Whether this build can fetch models.
    pub can_fetch: bool,
}

/// What `auto` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Builtin(Why),
    Cached(&'static str),
    Fetch(&'static str),
}

/// Why it is the built-in base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Only this one trains in a short time without a GPU.
    Cpu,
    NoRoom {
        free_bytes: u64,
    },
    Offline(&'static str),
    NoHub,
}

/// On a GPU with enough free memory Mistral-7B-v0.3, from the cache (4 bits first) or else from the hub; the built-in
/// base everywhere else.
pub fn choose(situation: &Situation) -> Choice {
    let Room::Gpu { free_bytes } = situation.room else { return Choice::Builtin(Why::Cpu) };
    if free_bytes < ROOM_FOUR_BIT {
        return Choice::Builtin(Why::NoRoom { free_bytes });
    }
    let room = if situation.load_in_4bit { ROOM_FOUR_BIT } else { ROOM_SIXTEEN_BIT };
    match situation {
        Situation { has_four_bit: true, .. } => Choice::Cached(FOUR_BIT),
        Situation { has_sixteen_bit: true, .. } if free_bytes >= room => Choice::Cached(SIXTEEN_BIT),
        Situation { can_fetch: false, .. } => Choice::Builtin(Why::NoHub),
        Situation { offline: Some(variable), .. } => Choice::Builtin(Why::Offline(variable)),
        _ => Choice::Fetch(FOUR_BIT),
    }
}

impl Why {
    /// The reason, to follow "because".
    pub fn told(self) -> String {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match self {
            Self::Cpu => "a larger one takes hours on a CPU".to_owned(),
            Self::NoRoom { free_bytes } => format!(
                "Mistral-7B wants {:.0} GiB of free GPU memory and there are {:.1}",
                gib(ROOM_FOUR_BIT),
                gib(free_bytes)
            ),
            Self::Offline(variable) => {
                format!("Mistral-7B is not in the cache and {variable} forbids fetching it ({FOUR_BIT}, 4.1 GB)")
            }
            Self::NoHub => "Mistral-7B is not in the cache and this build cannot fetch models".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Room = Room::Gpu { free_bytes: 78 << 30 };
    const EMPTY: Situation = Situation {
        room: GPU,
        load_in_4bit: true,
        has_four_bit: false,
        has_sixteen_bit: false,
        offline: None,
        can_fetch: true,
    };

    #[test]
    fn a_gpu_takes_what_the_cache_has_in_four_bits_first() {
        assert_eq!(choose(&EMPTY), Choice::Fetch(FOUR_BIT));
        let sixteen = Situation { has_sixteen_bit: true, ..EMPTY };
        assert_eq!(choose(&sixteen), Choice::Cached(SIXTEEN_BIT));
        assert_eq!(choose(&Situation { has_four_bit: true, ..sixteen }), Choice::Cached(FOUR_BIT));
    }

    #[test]
    fn offline_only_the_cache_counts() {
        let offline = Situation { offline: Some("HF_HUB_OFFLINE"), ..EMPTY };
        assert_eq!(choose(&offline), Choice::Builtin(Why::Offline("HF_HUB_OFFLINE")));
        assert_eq!(choose(&Situation { has_sixteen_bit: true, ..offline }), Choice::Cached(SIXTEEN_BIT));
        assert_eq!(choose(&Situation { has_four_bit: true, ..offline }), Choice::Cached(FOUR_BIT));
        assert_eq!(choose(&Situation { can_fetch: false, ..EMPTY }), Choice::Builtin(Why::NoHub));
    }

    #[test]
    fn a_cpu_and_a_full_gpu_take_the_built_in_base() {
        let both = Situation { has_four_bit: true, has_sixteen_bit: true, ..EMPTY };
        assert_eq!(choose(&Situation { room: Room::Cpu, ..both }), Choice::Builtin(Why::Cpu));
        let with = |free_bytes| Situation { room: Room::Gpu { free_bytes }, ..both };
        let short = ROOM_FOUR_BIT - 1;
        assert_eq!(choose(&with(short)), Choice::Builtin(Why::NoRoom { free_bytes: short }));
        assert_eq!(choose(&with(ROOM_FOUR_BIT)), Choice::Cached(FOUR_BIT));
    }

    #[test]
    fn sixteen_bits_that_stay_sixteen_want_their_room() {
        let kept = Situation { load_in_4bit: false, has_sixteen_bit: true, ..EMPTY };
        assert_eq!(choose(&kept), Choice::Cached(SIXTEEN_BIT));
        let small = Room::Gpu { free_bytes: ROOM_SIXTEEN_BIT - 1 };
        assert_eq!(choose(&Situation { room: small, ..kept }), Choice::Fetch(FOUR_BIT));
        assert_eq!(choose(&Situation { room: small, load_in_4bit: true, ..kept }), Choice::Cached(SIXTEEN_BIT));
    }

    #[test]
    fn every_reason_is_told() {
        let told = Why::NoRoom { free_bytes: 3 << 29 }.told();
        assert_eq!(told, "Mistral-7B wants 7 GiB of free GPU memory and there are 1.5");
        assert!(Why::Offline("HF_HUB_OFFLINE").told().contains("4.1 GB"));
    }
}
