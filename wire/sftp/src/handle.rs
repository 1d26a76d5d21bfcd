//! Handles: what a server calls an open file or directory.

/// Length of a handle in bytes.
pub const HANDLE_BYTES: usize = 8;

/// Open things by handle; their number is bounded, and a handle is never used again for another thing.
#[derive(Debug)]
pub struct HandleTable<T> {
    slots: Vec<Slot<T>>,
    handles_max: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    open: Option<T>,
}

/// Too many things are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many open handles")]
pub struct HandlesFull;

impl<T> HandleTable<T> {
    /// A table for `handles_max` things at most.
    pub fn new(handles_max: usize) -> Self {
        Self { slots: Vec::new(), handles_max }
    }

    /// Whether another thing can be opened.
    pub fn has_room(&self) -> bool {
        self.slots.len() < self.handles_max || self.slots.iter().any(|slot| slot.open.is_none())
    }

    /// Keeps `thing`; gives its handle.
    pub fn insert(&mut self, thing: T) -> Result<[u8; HANDLE_BYTES], HandlesFull> {
        let free = self.slots.iter().position(|slot| slot.open.is_none());
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < self.handles_max => {
                self.slots.push(Slot { generation: 0, open: None });
                self.slots.len() - 1
            }
            None => return Err(HandlesFull),
        };
        let slot = self.slots.get_mut(index).ok_or(HandlesFull)?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.open = Some(thing);
        let index = u64::try_from(index).unwrap_or(u64::MAX);
        Ok((u64::from(slot.generation) << 32 | index).to_be_bytes())
    }

    /// The thing that a peer's handle names.
    pub fn get_mut(&mut self, handle: &[u8]) -> Option<&mut T> {
        self.slot(handle)?.open.as_mut()
    }

    /// Takes the thing out; its handle is void from now on.
    pub fn remove(&mut self, handle: &[u8]) -> Option<T> {
        self.slot(handle)?.open.take()
    }

    fn slot(&mut self, handle: &[u8]) -> Option<&mut Slot<T>> {
        let number = u64::from_be_bytes(handle.try_into().ok()?);
        let index = usize::try_from(number & u64::from(u32::MAX)).ok()?;
        let generation = u32::try_from(number >> 32).ok()?;
        self.slots.get_mut(index).filter(|slot| slot.generation == generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_handle_names_nothing_even_when_its_slot_is_used_again() {
        let mut table = HandleTable::new(1);
        let first = table.insert('a').unwrap();
        assert_eq!(table.insert('b'), Err(HandlesFull));
        assert_eq!(table.remove(&first), Some('a'));
        let second = table.insert('b').unwrap();

        assert_eq!(table.get_mut(&first), None);
        assert_eq!(table.get_mut(&second), Some(&mut 'b'));
        assert_eq!(table.remove(&first), None);
    }

    #[test]
    fn f_strange_handles_name_nothing() {
        let mut table = HandleTable::new(4);
        table.insert('a').unwrap();
        for strange in [&[][..], &[0; 7], &[0; 8], &[255; 8], &[0; 9]] {
            assert_eq!(table.get_mut(strange), None);
        }
    }
}
