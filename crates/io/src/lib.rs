//! Ports of the engine: AF_PACKET, TUN and memory.
