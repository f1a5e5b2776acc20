// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Mapping is which public port a router gives to a host's socket, see RFC 4787, sections
// 4.1 and 4.2.1.
type Mapping int

// The mappings.
const (
	// EndpointIndependent is one port for all destinations. It is another one than the
	// socket's for those that daemons usually have.
	EndpointIndependent Mapping = iota
	// PortPreserving is the same, but the socket's own port while no other host uses it.
	PortPreserving
	// PortDependent is another port for each address and port of a destination (symmetric
	// NAT).
	PortDependent
)

// Router is how a site's router treats packets, in the terms of RFC 4787. Mapping,
// FullCone, OpenInput, Hairpin and Carrier are those of the NAT of [Home]. Nothing can be
// set for the underlay [NAT], which keeps no state.
type Router struct {
	Mapping Mapping
	// FullCone makes filtering endpoint-independent: whatever is sent to a mapping gets in.
	// Otherwise it depends on address and port: a socket gets packets only from where it has
	// sent to.
	FullCone bool
	// OpenInput makes the router accept packets for itself. If a packet comes to a port
	// before a host has sent one from there to the same remote, connection tracking takes
	// it for the router's own, and the host gets another port. The kernel then prefers that
	// one for further destinations.
	OpenInput bool
	// Hairpin lets a host of the site reach the mapping of another one. Whether that one
	// has sent something before does not matter.
	Hairpin bool
	// Timeout is for how long a UDP mapping stays without packets, in whole seconds;
	// otherwise the kernel's: 30 s until an answer has come, then 120 s.
	Timeout time.Duration
	// Maps is by which protocol the router makes port mappings for hosts; "" for none.
	Maps Maps
	// Carrier is the NAT of a second router, between this one and the internet; nil for none.
	Carrier *Router
	// BlockUDP drops all UDP between the site and the internet.
	BlockUDP bool
	// OnlyHTTPS lets out nothing but TCP connections to port 443 that begin as TLS does. Others to
	// that port are reset, and all else is dropped.
	OnlyHTTPS bool
	// OnlyTo lets out nothing but TCP connections to this address; zero for no such bound.
	OnlyTo netip.Addr
	// Firewall4 and Firewall6 let in only answers, by family. Home always does for IPv4.
	Firewall4, Firewall6 bool
}

// Maps are protocols by which hosts ask for port mappings.
type Maps string

// The protocols that miniupnpd speaks: PCP comes with NAT-PMP.
const (
	PCP    Maps = "PCP"
	NATPMP Maps = "NAT-PMP"
	UPnP   Maps = "UPnP"
)

// homeRules are those of a NAT with one public address for all. As long as it can, the kernel
// gives packets from one socket to all destinations the same source port, see
// find_appropriate_src in net/netfilter/nf_nat_core.c, unless it chooses fully at random.
// The kernel has no filtering that is independent of the endpoint, so a map remembers
// which host has a port.
const homeRules = `
table inet lab {
	map mapped {
		type inet_service : ipv4_addr . inet_service
		flags dynamic, timeout
		size 1024
	}

	chain enter {
		type nat hook prerouting priority dstnat
	}
	chain leave {
		type nat hook postrouting priority srcnat
		oifname wan meta l4proto { tcp, udp } snat ip to PUBLICPORTS
		meta nfproto ipv4 oifname wan snat ip to PUBLIC
	}
	chain remember {
		type filter hook postrouting priority srcnat + 10
		oifname wan ct direction original update @mapped { udp sport timeout TIMEOUT : ct original ip saddr . ct original proto-src }
	}
	chain own {
		type filter hook input priority filter
	}
}
`

// kernelTimeout is the default of nf_conntrack_udp_timeout_stream.
const kernelTimeout = 120 * time.Second

// closedInputRule drops unsolicited packets before connection tracking remembers them.
const closedInputRule = "add rule inet lab own iifname wan meta l4proto { tcp, udp } ct state new counter drop\n"

const fullConeRule = "add rule inet lab enter iifname wan ip daddr PUBLIC dnat ip to udp dport map @mapped\n"

// hairpinRules give packets the public source, too: RFC 4787, section 6.
const hairpinRules = `
add rule inet lab enter iifname "lan*" ip daddr PUBLIC dnat ip to udp dport map @mapped
add rule inet lab leave oifname "lan*" ip saddr LAN ct status dnat meta l4proto udp snat ip to PUBLICPORTS
`

// otherPorts are without the ports that daemons have, WireGuard's and gossip's too: a port
// in the range would stay what it is.
const otherPorts = ":20000-49999"

// nat returns the rules of a NAT with hosts on networks of IPv4.
func (r Router) nat(public netip.Addr, lan ...netip.Prefix) string {
	rules := homeRules
	if !r.OpenInput {
		rules += closedInputRule
	}
	if r.FullCone {
		rules += fullConeRule
	}
	if r.Hairpin {
		rules += hairpinRules
	}
	ports := otherPorts
	switch r.Mapping {
	case PortPreserving:
		ports = ""
	case PortDependent:
		ports += " fully-random"
	}
	return strings.NewReplacer(
		"PORTS", ports, "PUBLIC", public.String(), "LAN", list(lan),
		"TIMEOUT", cmp.Or(r.Timeout, kernelTimeout).String(),
	).Replace(rules)
}

// filter returns the rules that drop packets on their way through the router.
func (r Router) filter() string {
	rules := "table inet lab-filter {\nchain between {\ntype filter hook forward priority filter\n"
	if r.BlockUDP {
		rules += "meta l4proto udp iifname wan counter drop\nmeta l4proto udp oifname wan counter drop\n"
	}
	if r.OnlyHTTPS {
		rules += onlyHTTPSRules
	}
	if r.OnlyTo.IsValid() {
		rules += "oifname wan meta l4proto tcp ip daddr " + r.OnlyTo.String() + " accept\noifname wan counter drop\niifname wan ct state new counter drop\n"
	}
	if r.Firewall4 {
		rules += "meta nfproto ipv4 iifname wan ct state new counter drop\n"
	}
	if r.Firewall6 {
		rules += "meta nfproto ipv6 iifname wan ct state new counter drop\n"
	}
	return rules + "}\n}\n"
}

// onlyHTTPSRules look at the first packet of a connection that carries data (@ih is what follows
// the header of TCP): a record of TLS's handshake begins with 16 03 01. Packets without data have
// 84 bytes at most, with all options of TCP.
const onlyHTTPSRules = `
iifname wan ct state new counter drop
iifname wan accept
oifname wan tcp dport 443 ct mark 443 accept
oifname wan tcp dport 443 meta length <= 84 accept
oifname wan tcp dport 443 @ih,0,24 0x160301 ct mark set 443 accept
oifname wan tcp dport 443 counter reject with tcp reset
oifname wan counter drop
`

// check returns an error if the options ask for what the underlay does not have.
func (o SiteOptions) check() error {
	if o.Underlay == NAT && o.Router != (Router{}) {
		return errors.New("a cloud's NAT has no options")
	}
	if o.Router.Maps != "" && (o.Underlay != Home || o.Router.Carrier != nil) {
		return errors.New("only a home's router that has a public address makes port mappings")
	}
	if c := o.Router.Carrier; c != nil && (o.Underlay != Home || c.Carrier != nil) {
		return errors.New("only a home's router has a carrier's beyond it")
	}
	for r := &o.Router; r != nil; r = r.Carrier {
		if r.Timeout%time.Second != 0 {
			return fmt.Errorf("timeout %s: must be whole seconds", r.Timeout)
		}
	}
	return nil
}

// setUp applies rules to a router, with those that all kinds have.
func (r Router) setUp(ctx context.Context, h *Host, rules string) error {
	if err := nft(ctx, h, rules+r.filter()); err != nil {
		return fmt.Errorf("add rules: %w", err)
	}
	if r.Timeout == 0 {
		return nil
	}
	for _, key := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := h.sysctl("net/netfilter/"+key, strconv.Itoa(int(r.Timeout/time.Second))); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
	}
	return nil
}

// carrierGateway4 is the carrier's router for the site's, as gateway4 is the internet's for
// the carrier's.
const carrierGateway4 = "172.31.1.2"

// setUpCarrier puts the carrier's router between the site's and the internet. The site's
// has an address there that only the carrier knows.
func (s *Site) setUpCarrier(ctx context.Context) error {
	carrier := s.options.Router.Carrier
	var err error
	if s.carrier, err = startHost(s.Name + "-carrier"); err != nil {
		return fmt.Errorf("make carrier's router: %w", err)
	}
	if err := s.carrier.route(); err != nil {
		return err
	}
	const lan = "lan0" // the rules of a NAT know the side of its hosts by the name
	own := s.ownAddress()
	if err := errors.Join(
		s.uplink(ctx, s.carrier, lan, s.router, own),
		s.carrier.ip(ctx, "link set lo up"),
	); err != nil {
		return fmt.Errorf("link to the carrier: %w", err)
	}
	return carrier.setUp(ctx, s.carrier, carrier.nat(s.publicOf(0), netip.PrefixFrom(own, own.BitLen())))
}

// ownAddress is the address to which the site's router translates.
func (s *Site) ownAddress() netip.Addr {
	if s.options.Router.Carrier == nil {
		return s.publicOf(0)
	}
	return netip.AddrFrom4([4]byte{100, 64, 1, byte(s.number)})
}

// RebootRouter makes the router of a site's host forget whom it has translated, as if it had
// been switched off and on.
func (h *Host) RebootRouter(ctx context.Context) error {
	s := h.link.site
	if s == nil {
		return fmt.Errorf("reboot router of %s: it is on no site", h.Name)
	}
	err := s.router.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err == nil && s.options.Underlay == Home {
		err = nft(ctx, s.router, "flush map inet lab mapped\n")
	}
	if err == nil && s.mapper != nil {
		err = errors.Join(s.mapper.stop(), s.startMapper(ctx))
	}
	if err != nil {
		return fmt.Errorf("reboot router of %s: %w", h.Name, err)
	}
	return nil
}
