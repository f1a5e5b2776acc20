// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

const (
	// ProblemUplink is that this host has no way to the others.
	ProblemUplink mesh.ProblemKind = "no-uplink"
	// ProblemNetwork is that this host has lost its way to a network that it is to serve.
	ProblemNetwork mesh.ProblemKind = "no-network"
	// ProblemEncryption is that this node does not take part in the cluster's mode,
	// because its own file has everything encrypted.
	ProblemEncryption mesh.ProblemKind = "encryption"
)

// Configuration is what this host should have, and what that follows from.
type Configuration struct {
	Input    mesh.Input
	Topology mesh.Topology
	Settings netcfg.Settings
	Desired  netcfg.State
	Prune    bool // what is not desired may be taken away
	// InternalIPs are those of this node, and OtherPrivate the host's other private addresses.
	InternalIPs, OtherPrivate []netcfg.InternalIP
	Problems                  []mesh.Problem
}

// Configure works out what this host should have.
func (m *Memory) Configure(in Input) Configuration {
	c := Configuration{Input: mesh.Input{
		Cluster:  in.View.Cluster,
		Self:     in.Self.ID(),
		Records:  in.View.Records,
		Verdicts: in.View.Verdicts,
		Clients:  in.View.Clients,
		Resolved: in.Resolved,
		Underlay: in.Facts.Addresses,
		Nearby:   in.nearby(),

		LinkAccess: in.Config.LinkAccess,
	}}
	c.Topology = mesh.Derive(c.Input)
	m.Routers.assign(c.Topology.Clients)
	c.Settings = netcfg.Settings{
		Interface:        in.Config.Interface,
		Implementation:   in.Config.Implementation,
		ListenPort:       int(in.Config.ListenPort),
		GossipPort:       int(in.Config.GossipPort),
		LANs:             in.Facts.LANs(m.Own.InternalIPs),
		Uplinks:          in.Facts.Uplinks,
		Cards:            in.Facts.Cards,
		Attached:         c.Input.Nearby.Prefixes(),
		PrivateKey:       in.Self.WireGuard,
		MTU:              cmp.Or(m.Own.MTU, in.Config.deviceMTU(in.Facts)), // a revoked node has no record
		Bridge:           in.Config.Bridge,
		ID:               in.Self.ID(),
		Keepalives:       m.keepalives(in, c.Topology.Peers),
		Awaited:          m.Handshakes.awaited(c.Topology.Peers, m.Own),
		ProvedEndpoints:  in.Paths.Proved,
		PathMTUs:         in.Paths.MTU,
		LearnedEndpoints: m.endpoints(in.View.Clients, c.Topology.Clients),
	}
	c.Desired = netcfg.Desired(c.Topology, c.Settings)
	c.Prune = in.mayPrune()
	c.InternalIPs, c.OtherPrivate = in.Facts.InternalIPs(in.Config.InternalIP, m.internalIPs)
	c.Problems = append(c.Problems, c.Topology.Problems...)
	for _, p := range in.View.Problems {
		if p.Node == in.Self.ID().String() { // gossip does not know our name before others do
			p.Node = in.Config.Name
		}
		c.Problems = append(c.Problems, p)
	}
	c.Problems = append(c.Problems, uplinkProblems(in)...)
	c.Problems = append(c.Problems, encryptionProblems(in)...)
	c.Problems = append(c.Problems, bindProblems(in)...)
	c.Problems = append(c.Problems, m.ways.problems(in.Config)...)
	if m.Own.Location != "" && len(m.Own.InternalIPs) == 0 {
		c.Problems = append(c.Problems, mesh.Problem{
			Kind: mesh.ProblemAddress, Node: m.Own.Name,
			Text:   fmt.Sprintf("node.location is %s, but %s", m.Own.Location, netcfg.NoPrivateAddress),
			Advice: netcfg.NoPrivateAddressAdvice,
		})
	}
	return c
}

// nearby returns what this host must reach without the mesh. Pods are not part of it, whoever
// gives them their network.
func (in Input) nearby() mesh.Nearby {
	if in.Config.Bridge == "" {
		return in.Facts.Nearby.WithoutPods(in.View.Cluster)
	}
	return in.Facts.Nearby
}

// bindProblems: gossip can listen at an address that comes later, for example by DHCP, and
// is not heard until then.
func bindProblems(in Input) []mesh.Problem {
	a := in.Config.GossipBind
	has := func(l netcfg.LAN) bool { return l.Address.Addr() == a }
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || slices.ContainsFunc(in.Facts.Attached, has) {
		return nil
	}
	return []mesh.Problem{{
		Kind: mesh.ProblemAddress, Node: in.Config.Name,
		Text:   fmt.Sprintf("gossip.bind is %v, which is not an address of this host", netip.AddrPortFrom(a, in.Config.GossipPort)),
		Advice: fmt.Sprintf("give the host that address, or set gossip.bind to :%d, which is every address", in.Config.GossipPort),
	}}
}

// uplinkProblems: a host without a default route may still have a way to all others; one
// that is alone although it knows of others has none.
func uplinkProblems(in Input) []mesh.Problem {
	if len(in.Facts.Uplinks) > 0 || !in.View.Alone || !in.Config.Joins && len(in.View.Records) < 2 {
		return nil
	}
	return []mesh.Problem{{
		Kind: ProblemUplink, Node: in.Config.Name, Text: "this host has no default route, and no other node is reached",
		Advice: "see to its network: ip link, ip address, ip route",
	}}
}

// encryptionProblems reports if the file's mode is full while the cluster's is not. Who
// writes node.encryption: required knows.
func encryptionProblems(in Input) []mesh.Problem {
	used := in.View.Cluster
	if in.Config.EncryptionRequired || in.Config.Cluster.Mode != mesh.ModeFull || used.Mode == mesh.ModeFull || in.Config.Location == "" {
		return nil
	}
	return []mesh.Problem{{
		Kind: ProblemEncryption, Node: in.Config.Name,
		Text: fmt.Sprintf("cluster.mode is %s, but full in this node's file: it keeps all its tunnels, and nothing of it crosses its private network in plain text", used.Mode),
		Advice: fmt.Sprintf("write cluster.mode: %s and generation: %d here if packets may cross it in plain text; else write node.encryption: required",
			used.Mode, used.Generation),
	}}
}
