/*
 * What Rust cannot call of DPDK by itself: its fast path is inline functions over structures that no stable interface
 * describes. One call moves one burst. The Rust side of these declarations is ffi.rs; both state the same layout.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_net.h>

/* Frames in one call of a driver. */
#define BURST 64
/* Flags of a buffer whose memory is not its own. */
#define OWNERSHIP (RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL)
/* Longest RSS key of any driver, bytes. */
#define RSS_KEY_MAX 64

/* What is known of a received frame, or asked of a transmitted one. */
enum {
	FRAME_L4_GOOD = 1 << 0,    /* received: the transport checksum is right */
	FRAME_L4_PARTIAL = 1 << 1, /* received: only the pseudo-header is summed */
	FRAME_HASH = 1 << 2,       /* received: `hash` is valid */
	FRAME_VLAN = 1 << 3,       /* `vlan` is valid: was stripped, is to be inserted */
	FRAME_LRO = 1 << 4,        /* received: made of segments with `gso_size` bytes of payload */
	FRAME_IPV6 = 1 << 5,       /* sent: with one of the following */
	FRAME_TCP = 1 << 6,        /* sent: complete the checksum of TCP */
	FRAME_UDP = 1 << 7,        /* sent: complete the checksum of UDP */
	FRAME_TSO = 1 << 8,        /* sent: cut into segments with `gso_size` bytes of payload */
};

/* What a port was started with. */
enum {
	PORT_TX_CHECKSUM = 1 << 0,
	PORT_TX_TSO = 1 << 1,
	PORT_TX_VLAN = 1 << 2,
	PORT_RX_CHECKSUM = 1 << 3,
	PORT_RX_VLAN = 1 << 4,
	PORT_RX_LRO = 1 << 5,
	PORT_RX_SCATTER = 1 << 6,
	PORT_RSS = 1 << 7,
	PORT_INTERRUPTS = 1 << 8,
};

struct nw_frame {
	struct rte_mbuf *mbuf;
	uint8_t *data;
	uint32_t len;
	uint32_t room; /* bytes from `data` to the end of the buffer */
	uint32_t hash;
	uint16_t vlan;
	uint16_t flags;
	uint16_t gso_size;
	uint8_t l3_len;
	uint8_t l4_len;
};

_Static_assert(sizeof(struct nw_frame) == 40, "as in ffi.rs");

struct nw_sent {
	uint32_t frames;
	uint32_t full;   /* refused: the ring was full */
	uint32_t errors; /* refused: the driver cannot send such a frame */
	uint64_t bytes;
};

struct nw_port {
	uint16_t port;
	uint16_t flags; /* PORT_*: wished for when it is started, then what was granted */
	uint16_t queues;
	uint16_t rx_ring;
	uint16_t tx_ring;
	uint16_t mtu;       /* wished for, 0 for what the device has; then what it has */
	uint8_t mac[6];     /* wished for, zero for what the device has; then what it has */
	uint16_t data_room; /* bytes that a buffer of the pool holds */
	const char *step;   /* what failed */
	char driver[32];
	int32_t socket;
};
_Static_assert(sizeof(struct nw_port) == 72, "as in ffi.rs");

struct nw_xstat {
	char name[RTE_ETH_XSTATS_NAME_SIZE];
	uint64_t value;
};
_Static_assert(sizeof(struct nw_xstat) == 72, "as in ffi.rs");

/* Messages of DPDK go to Rust, each with its level (1 is worst). */
extern void nw_log(uint32_t level, const char *text, size_t len);

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	(void)cookie;
	int level = rte_log_cur_msg_loglevel();
	nw_log(level > 0 ? (uint32_t)level : RTE_LOG_INFO, text, len);
	return (ssize_t)len;
}

/* Starts the environment; 0 or an errno. Called once in a process, in a thread that may be pinned. */
int nw_eal_init(int argc, char **argv)
{
	static const cookie_io_functions_t functions = {.write = log_write};
	FILE *stream = fopencookie(NULL, "w", functions);
	if (stream != NULL) {
		setvbuf(stream, NULL, _IOLBF, BUFSIZ);
		rte_openlog_stream(stream);
	}
	return rte_eal_init(argc, argv) < 0 ? rte_errno : 0;
}

/* Makes a thread that calls drivers known to the environment, which gives it caches of its own; 0 or an errno. */
int nw_thread_register(void)
{
	return rte_thread_register() < 0 ? rte_errno : 0;
}

void nw_thread_unregister(void)
{
	rte_thread_unregister();
}

/* Adds a device by its arguments; 0 or an errno. */
int nw_probe(const char *devargs)
{
	return -rte_dev_probe(devargs);
}

/* The port of a device by name; 0 or an errno. */
int nw_port_by_name(const char *name, uint16_t *port)
{
	return -rte_eth_dev_get_port_by_name(name, port);
}

/* The first port from `from` on; RTE_MAX_ETHPORTS or more if there is none. */
uint16_t nw_port_next(uint16_t from)
{
	uint64_t next = rte_eth_find_next(from);
	return next >= RTE_MAX_ETHPORTS ? UINT16_MAX : (uint16_t)next;
}

int nw_port_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr address;
	int error = rte_eth_macaddr_get(port, &address);
	if (error == 0)
		memcpy(mac, address.addr_bytes, sizeof(address.addr_bytes));
	return -error;
}

int nw_port_mtu(uint16_t port, uint16_t *mtu)
{
	return -rte_eth_dev_get_mtu(port, mtu);
}

/* Queues that a port can have; 0 if it does not tell. */
uint16_t nw_port_queues(uint16_t port)
{
	struct rte_eth_dev_info info;
	return rte_eth_dev_info_get(port, &info) == 0 ? RTE_MIN(info.max_rx_queues, info.max_tx_queues) : 0;
}

/* The NUMA node of a port's device; -1 if it has none. */
int nw_port_socket(uint16_t port)
{
	return rte_eth_dev_socket_id(port);
}

/* A pool of buffers; `dense` leaves no gaps between them at the ends of pages, which a device that does DMA may need. */
struct rte_mempool *nw_pool(const char *name, uint32_t count, uint16_t data_room, int socket, bool dense)
{
	uint32_t cache = RTE_MIN(count / 4, (uint32_t)RTE_MEMPOOL_CACHE_MAX_SIZE);
	uint16_t room = data_room + RTE_PKTMBUF_HEADROOM;
	struct rte_pktmbuf_pool_private private = {.mbuf_data_room_size = room};
	if (!dense)
		return rte_pktmbuf_pool_create(name, count, cache, 0, room, socket);
	return rte_mempool_create(name, count, sizeof(struct rte_mbuf) + room, cache, sizeof(private),
				  rte_pktmbuf_pool_init, &private, rte_pktmbuf_init, NULL, socket,
				  RTE_MEMPOOL_F_NO_IOVA_CONTIG);
}

/* 0x6d5a over and over: both directions of a flow get the same hash. */
static void symmetric_key(uint8_t *key, size_t len)
{
	for (size_t i = 0; i < len; i++)
		key[i] = i % 2 == 0 ? 0x6d : 0x5a;
}

static int refuse(struct nw_port *p, const char *step, int error)
{
	p->step = step;
	return error < 0 ? -error : error;
}

static int configure(struct nw_port *p, const struct rte_eth_dev_info *info, uint64_t tx_offloads)
{
	uint8_t key[RSS_KEY_MAX];
	struct rte_eth_conf conf = {
		.txmode = {.mq_mode = RTE_ETH_MQ_TX_NONE, .offloads = tx_offloads},
		.rxmode = {.mq_mode = RTE_ETH_MQ_RX_NONE, .mtu = p->mtu},
	};
	if (p->flags & PORT_RX_CHECKSUM)
		conf.rxmode.offloads |= info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
	if (p->flags & PORT_RX_VLAN)
		conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
	if (p->flags & PORT_RX_SCATTER)
		conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_SCATTER;
	if (p->flags & PORT_RX_LRO) {
		conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_TCP_LRO;
		conf.rxmode.max_lro_pkt_size = info->max_lro_pkt_size;
	}
	if (p->flags & PORT_RSS) {
		size_t len = info->hash_key_size == 0 ? 40 : info->hash_key_size;
		len = RTE_MIN(len, sizeof(key));
		symmetric_key(key, len);
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rxmode.offloads |= info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_RSS_HASH;
		conf.rx_adv_conf.rss_conf.rss_hf = info->flow_type_rss_offloads &
			(RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
		conf.rx_adv_conf.rss_conf.rss_key = key;
		conf.rx_adv_conf.rss_conf.rss_key_len = (uint8_t)len;
	}
	conf.intr_conf.rxq = (p->flags & PORT_INTERRUPTS) != 0;
	int error = rte_eth_dev_configure(p->port, p->queues, p->queues, &conf);
	if (error != 0)
		return refuse(p, "configure", error);
	uint16_t rx_ring = p->rx_ring, tx_ring = p->tx_ring;
	error = rte_eth_dev_adjust_nb_rx_tx_desc(p->port, &rx_ring, &tx_ring);
	if (error != 0)
		return refuse(p, "size the rings of", error);
	p->rx_ring = rx_ring;
	p->tx_ring = tx_ring;
	return 0;
}

static int set_up(struct nw_port *p, const struct rte_eth_dev_info *info, uint64_t tx_offloads, struct rte_mempool *pool)
{
	int error = configure(p, info, tx_offloads);
	if (error != 0)
		return error;
	struct rte_eth_txconf txconf = info->default_txconf;
	txconf.offloads = tx_offloads;
	unsigned int socket = p->socket < 0 ? 0 : (unsigned int)p->socket;
	for (uint16_t queue = 0; queue < p->queues; queue++) {
		error = rte_eth_rx_queue_setup(p->port, queue, p->rx_ring, socket, NULL, pool);
		if (error != 0)
			return refuse(p, "set up a receive queue of", error);
		error = rte_eth_tx_queue_setup(p->port, queue, p->tx_ring, socket, &txconf);
		if (error != 0)
			return refuse(p, "set up a transmit queue of", error);
	}
	error = rte_eth_dev_start(p->port);
	return error == 0 ? 0 : refuse(p, "start", error);
}

/* What the port can do, before it is started: fills `driver` and `socket`, and masks `flags`. */
static int describe(struct nw_port *p, struct rte_eth_dev_info *info)
{
	const uint64_t l4 = RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
	int error = rte_eth_dev_info_get(p->port, info);
	if (error != 0)
		return refuse(p, "ask for the capabilities of", error);
	snprintf(p->driver, sizeof(p->driver), "%s", info->driver_name);
	p->socket = rte_eth_dev_socket_id(p->port);
	if ((info->tx_offload_capa & l4) != l4)
		p->flags &= ~(PORT_TX_CHECKSUM | PORT_TX_TSO);
	if (!(info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_TCP_TSO) || !(p->flags & PORT_TX_CHECKSUM))
		p->flags &= ~PORT_TX_TSO;
	if (!(info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_VLAN_INSERT))
		p->flags &= ~PORT_TX_VLAN;
	if (!(info->rx_offload_capa & (RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM)))
		p->flags &= ~PORT_RX_CHECKSUM;
	if (!(info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_VLAN_STRIP))
		p->flags &= ~PORT_RX_VLAN;
	if (!(info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER))
		p->flags &= ~PORT_RX_SCATTER;
	/* What was merged on receipt has to be cut again on the way out. */
	if (!(info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_TCP_LRO) || !(p->flags & PORT_TX_TSO))
		p->flags &= ~PORT_RX_LRO;
	if (p->queues < 2 || (info->flow_type_rss_offloads & RTE_ETH_RSS_IP) == 0)
		p->flags &= ~PORT_RSS;
	return 0;
}

/* Starts a port: asks for what is wished for and can be had, and writes back what was granted; 0 or an errno. */
int nw_port_start(struct nw_port *p, struct rte_mempool *pool)
{
	static const uint8_t none[6];
	struct rte_eth_dev_info info;
	int error = describe(p, &info);
	if (error != 0)
		return error;
	uint64_t tx = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	if (p->flags & PORT_TX_CHECKSUM)
		tx |= RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM |
		      (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
	if (p->flags & PORT_TX_TSO)
		tx |= RTE_ETH_TX_OFFLOAD_TCP_TSO;
	if (p->flags & PORT_TX_VLAN)
		tx |= RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
	uint16_t mtu = 0;
	if (p->mtu == 0 && rte_eth_dev_get_mtu(p->port, &mtu) == 0)
		p->mtu = mtu;
	if (memcmp(p->mac, none, sizeof(none)) != 0) {
		struct rte_ether_addr address;
		memcpy(address.addr_bytes, p->mac, sizeof(p->mac));
		error = rte_eth_dev_default_mac_addr_set(p->port, &address);
		if (error != 0)
			return refuse(p, "set the hardware address of", error);
	}
	/* Every queue must have its interrupt, and a driver may say so only when it starts. */
	error = set_up(p, &info, tx, pool);
	if (error != 0 && (p->flags & PORT_INTERRUPTS)) {
		p->flags &= ~PORT_INTERRUPTS;
		error = set_up(p, &info, tx, pool);
	}
	if (error != 0)
		return error;
	error = rte_eth_dev_get_mtu(p->port, &mtu);
	if (error == 0 && mtu != 0)
		p->mtu = mtu;
	error = nw_port_mac(p->port, p->mac);
	if (error != 0)
		return refuse(p, "read the hardware address of", error);
	/* Frames for any address: the engine's own is not always the device's. Not all devices tell addresses apart. */
	error = rte_eth_promiscuous_enable(p->port);
	if (error != 0 && error != -ENOTSUP)
		return refuse(p, "set promiscuous mode on", error);
	return 0;
}

/* Stops a port and gives its device back. */
void nw_port_close(uint16_t port)
{
	struct rte_eth_dev_info info;
	struct rte_device *device = rte_eth_dev_info_get(port, &info) == 0 ? info.device : NULL;
	rte_eth_dev_stop(port);
	rte_eth_dev_close(port);
	if (device != NULL)
		rte_dev_remove(device);
}

/* 0 down, 1 up, 2 gone. */
int nw_port_link(uint16_t port)
{
	struct rte_eth_link link;
	if (rte_eth_dev_is_removed(port) || rte_eth_link_get_nowait(port, &link) == -ENODEV)
		return 2;
	return link.link_status == RTE_ETH_LINK_UP;
}

/* Frames that the port lost before they were received (no descriptor, no buffer), and received in error. */
void nw_port_lost(uint16_t port, uint64_t *dropped, uint64_t *errors)
{
	struct rte_eth_stats stats;
	if (rte_eth_stats_get(port, &stats) == 0) {
		*dropped = stats.imissed + stats.rx_nombuf;
		*errors = stats.ierrors;
	}
}

/* Frames that each of the first `queues` queues lost, as far as the driver tells them apart; 0 or an errno. */
int nw_port_lost_by_queue(uint16_t port, uint64_t *lost, uint16_t queues)
{
	struct rte_eth_stats stats;
	int error = rte_eth_stats_get(port, &stats);
	if (error != 0)
		return -error;
	for (uint16_t queue = 0; queue < queues; queue++)
		lost[queue] = queue < RTE_ETHDEV_QUEUE_STAT_CNTRS ? stats.q_errors[queue] : 0;
	return 0;
}

/* Everything that the driver counts, up to `max` figures; returns how many. */
uint32_t nw_port_xstats(uint16_t port, struct nw_xstat *figures, uint32_t max)
{
	int count = rte_eth_xstats_get(port, NULL, 0);
	if (count <= 0)
		return 0;
	struct rte_eth_xstat *values = calloc((size_t)count, sizeof(*values));
	struct rte_eth_xstat_name *names = calloc((size_t)count, sizeof(*names));
	uint32_t filled = 0;
	/* Either fails if there are more by now. */
	if (values != NULL && names != NULL && rte_eth_xstats_get_names(port, names, (unsigned int)count) == count &&
	    rte_eth_xstats_get(port, values, (unsigned int)count) == count)
		for (int i = 0; i < count && filled < max; i++) {
			if (values[i].id >= (uint64_t)count)
				continue;
			memcpy(figures[filled].name, names[values[i].id].name, sizeof(figures[filled].name));
			figures[filled].name[sizeof(figures[filled].name) - 1] = '\0';
			figures[filled++].value = values[i].value;
		}
	free(values);
	free(names);
	return filled;
}

/* Buffers of a pool that hold frames or wait for them in rings. */
uint32_t nw_pool_in_use(const struct rte_mempool *pool)
{
	return rte_mempool_in_use_count(pool);
}

/* Makes the queue's interrupt readable through the epoll descriptor; 0 or an errno. */
int nw_interrupt_watch(uint16_t port, uint16_t queue, int epoll)
{
	return -rte_eth_dev_rx_intr_ctl_q(port, queue, epoll, RTE_INTR_EVENT_ADD, NULL);
}

int nw_interrupt_arm(uint16_t port, uint16_t queue)
{
	return -rte_eth_dev_rx_intr_enable(port, queue);
}

void nw_interrupt_disarm(uint16_t port, uint16_t queue, int epoll)
{
	struct rte_epoll_event events[4];
	rte_eth_dev_rx_intr_disable(port, queue);
	rte_epoll_wait(epoll, events, RTE_DIM(events), 0);
}

/* Puts a frame of several buffers into one that is large enough; NULL if there is none. */
static struct rte_mbuf *join(struct rte_mbuf *m, struct rte_mempool *large)
{
	struct rte_mbuf *whole = large == NULL ? NULL : rte_pktmbuf_alloc(large);
	if (whole == NULL || rte_pktmbuf_tailroom(whole) < m->pkt_len) {
		rte_pktmbuf_free(whole);
		return NULL;
	}
	char *to = rte_pktmbuf_mtod(whole, char *);
	for (const struct rte_mbuf *part = m; part != NULL; part = part->next) {
		memcpy(to, rte_pktmbuf_mtod(part, const char *), part->data_len);
		to += part->data_len;
	}
	whole->pkt_len = m->pkt_len;
	whole->data_len = (uint16_t)m->pkt_len;
	whole->ol_flags = m->ol_flags & ~OWNERSHIP;
	whole->vlan_tci = m->vlan_tci;
	whole->hash = m->hash;
	whole->tso_segsz = m->tso_segsz;
	return whole;
}

static void show(struct nw_frame *frame, struct rte_mbuf *m)
{
	const uint64_t ol = m->ol_flags & ~OWNERSHIP;
	uint16_t flags = 0;
	frame->mbuf = m;
	frame->data = rte_pktmbuf_mtod(m, uint8_t *);
	frame->len = m->data_len;
	frame->room = m->buf_len - m->data_off;
	if (likely(ol == 0)) {
		frame->flags = 0;
		return;
	}
	const uint64_t l4 = ol & RTE_MBUF_F_RX_L4_CKSUM_MASK;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD)
		flags |= FRAME_L4_GOOD;
	else if (l4 == RTE_MBUF_F_RX_L4_CKSUM_NONE)
		flags |= FRAME_L4_PARTIAL;
	if (ol & RTE_MBUF_F_RX_RSS_HASH) {
		flags |= FRAME_HASH;
		frame->hash = m->hash.rss;
	}
	if (ol & RTE_MBUF_F_RX_VLAN_STRIPPED) {
		flags |= FRAME_VLAN;
		frame->vlan = m->vlan_tci;
	}
	if (ol & RTE_MBUF_F_RX_LRO) {
		flags |= FRAME_LRO;
		frame->gso_size = m->tso_segsz;
	}
	frame->flags = flags;
}

/*
 * Receives at most `max` (up to BURST) frames, each in one buffer and without its VLAN tag, and returns how many;
 * `lost` counts those for which there was no buffer.
 */
uint16_t nw_rx_burst(uint16_t port, uint16_t queue, struct nw_frame *frames, uint16_t max, struct rte_mempool *large,
		     uint64_t *lost)
{
	struct rte_mbuf *mbufs[BURST];
	uint16_t received = rte_eth_rx_burst(port, queue, mbufs, RTE_MIN(max, BURST));
	uint16_t shown = 0;
	for (uint16_t i = 0; i < received; i++)
		rte_prefetch0(rte_pktmbuf_mtod(mbufs[i], void *));
	for (uint16_t i = 0; i < received; i++) {
		struct rte_mbuf *m = mbufs[i];
		if (unlikely(m->nb_segs > 1)) {
			struct rte_mbuf *whole = join(m, large);
			rte_pktmbuf_free(m);
			if (whole == NULL) {
				++*lost;
				continue;
			}
			m = whole;
		}
		/* Where the device did not strip the tag; does nothing to a frame without one. */
		if (!(m->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) && m->data_len >= RTE_ETHER_HDR_LEN)
			rte_vlan_strip(m);
		show(&frames[shown++], m);
	}
	return shown;
}

/* Writes into the buffer what is asked of it. False if that is not possible. */
static bool prepare(struct nw_frame *frame, uint16_t offloads)
{
	struct rte_mbuf *m = frame->mbuf;
	const uint16_t flags = frame->flags;
	m->data_len = (uint16_t)frame->len;
	m->pkt_len = frame->len;
	/* What tells whose memory it is stays. */
	m->ol_flags &= OWNERSHIP;
	if (likely(flags == 0))
		return true;
	if (flags & (FRAME_TCP | FRAME_UDP)) {
		/* What a buffer was used for before has no part in it. */
		m->tx_offload = 0;
		m->l2_len = RTE_ETHER_HDR_LEN;
		m->l3_len = frame->l3_len;
		m->ol_flags |= flags & FRAME_IPV6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
		m->ol_flags |= flags & FRAME_TCP ? RTE_MBUF_F_TX_TCP_CKSUM : RTE_MBUF_F_TX_UDP_CKSUM;
		if (flags & FRAME_TSO) {
			m->ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
			/* The header's checksum differs from segment to segment. */
			if (!(flags & FRAME_IPV6))
				m->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
			m->l4_len = frame->l4_len;
			m->tso_segsz = frame->gso_size;
		}
		/* Drivers differ in what they expect in the fields; this is what all of them are content with. */
		if (rte_net_intel_cksum_prepare(m) != 0)
			return false;
	}
	if (flags & FRAME_VLAN) {
		m->vlan_tci = frame->vlan;
		m->ol_flags |= RTE_MBUF_F_TX_VLAN;
		if (!(offloads & PORT_TX_VLAN)) {
			/* The flags and the length of the header in front are changed along. */
			if (rte_vlan_insert(&m) != 0)
				return false;
			m->ol_flags &= ~(RTE_MBUF_F_TX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED);
			if (flags & (FRAME_TCP | FRAME_UDP))
				m->l2_len = RTE_ETHER_HDR_LEN + RTE_VLAN_HLEN;
		}
	}
	return true;
}

/* Sends frames in order; those that the ring does not take are given back to their pool. */
void nw_tx_burst(uint16_t port, uint16_t queue, struct nw_frame *frames, uint16_t count, uint16_t offloads,
		 struct nw_sent *sent)
{
	struct rte_mbuf *mbufs[BURST];
	uint32_t lens[BURST];
	uint16_t ready = 0, done = 0, step;
	bool asks = false;
	count = RTE_MIN(count, BURST);
	for (uint16_t i = 0; i < count; i++) {
		if (unlikely(!prepare(&frames[i], offloads))) {
			rte_pktmbuf_free(frames[i].mbuf);
			sent->errors++;
			continue;
		}
		asks |= frames[i].flags != 0;
		lens[ready] = frames[i].len;
		mbufs[ready++] = frames[i].mbuf;
	}
	while (done < ready) {
		uint16_t able = ready - done;
		if (asks) {
			/* The driver may have limits of its own; it stops at the first frame that is beyond them. */
			able = rte_eth_tx_prepare(port, queue, &mbufs[done], able);
			if (able == 0) {
				rte_pktmbuf_free(mbufs[done++]);
				sent->errors++;
				continue;
			}
		}
		step = rte_eth_tx_burst(port, queue, &mbufs[done], able);
		if (step == 0)
			break;
		for (uint16_t i = 0; i < step; i++)
			sent->bytes += lens[done + i];
		sent->frames += step;
		done += step;
	}
	if (done < ready) {
		sent->full += ready - done;
		rte_pktmbuf_free_bulk(&mbufs[done], ready - done);
	}
}

/* An empty buffer; false if the pool has none. */
bool nw_alloc(struct rte_mempool *pool, struct nw_frame *frame)
{
	struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
	if (unlikely(m == NULL))
		return false;
	show(frame, m);
	return true;
}

void nw_free(struct rte_mbuf *m)
{
	rte_pktmbuf_free(m);
}
