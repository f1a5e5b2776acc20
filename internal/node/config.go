// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

// natKeepalive is how often a node speaks to peers that reach it by a NAT's mapping: NATs forget a UDP
// mapping after 30 s at the earliest (RFC 4787, REQ-5 asks for two minutes; many grant
// less), and 25 s is WireGuard's own advice.
const natKeepalive = 25 * time.Second

// Config is what a node's decisions depend on of the configuration file.
type Config struct {
	Name               string
	Location           string       // "" for a node that stands alone
	Cluster            mesh.Cluster // as in the file, which may not be in force
	Slot               int          // that the file names; mesh.None: to be claimed
	Gateway            mesh.GatewayPreference
	Exit               bool // clients may reach the internet through this node
	Relay              mesh.RelayPreference
	PortMapping        bool           // the router may be asked
	Encrypted          bool           // nothing crosses a LAN in plain text, whatever the mode
	EncryptionRequired bool           // and that is written, and does not follow from the file's mode
	Endpoint           mesh.Endpoint  // zero: to be found out
	InternalIP         netip.Prefix   // with its network's length; invalid: to be found out; or mesh.NoInternalIP
	AllowedLocationIPs []netip.Prefix // further networks behind the location
	Links              []Link         // to other clusters
	LinkAccess         []mesh.Access  // what these may reach
	Keepalive          *time.Duration // nil: only on paths that a NAT's mapping holds; 0: never
	ListenPort         uint16         // of WireGuard
	MTU                int            // of the device, bytes; 0: to be found out
	GossipPort         uint16
	GossipBind         netip.Addr        // at which address of this host gossip listens; invalid: at all
	GossipAddr         string            // host:port; "": to be found out
	StreamPort         uint16            // where streams are accepted, besides gossip's port; 0 for none
	Etcd               mesh.EtcdTimings  // of the member of etcd on this host; "" if there is none
	Secrets            []mesh.SecretHash // that gossip accepts, the one that it uses first
	Joins              bool              // there is a join list
	Interface          string            // of WireGuard
	Implementation     netcfg.Implementation
	Pace               probe.Pace
	ForgetAfter        time.Duration // how long a node may be away before it is forgotten
	Bridge             string        // that the pods are on; "" if others do the CNI
}

// Link is a link of this host to another cluster.
type Link struct {
	Cluster  string         // its name
	Networks []netip.Prefix // that it leads to
	Heard    bool           // some node there answers
}

// networks returns the networks behind this node, and which of them are those of other clusters.
func (c Config) networks() (all []netip.Prefix, linked []mesh.LinkedNetwork) {
	all = slices.Clone(c.AllowedLocationIPs)
	for _, l := range c.Links {
		for _, p := range l.Networks {
			if !slices.Contains(all, p) {
				all, linked = append(all, p), append(linked, mesh.LinkedNetwork{Network: p, Cluster: l.Cluster})
			}
		}
	}
	return all, linked
}

// InternalIPs returns the configured internal IP, or those found out. Those of the last time
// stay as long as they are there.
func (c Config) InternalIPs(facts netcfg.Facts, last []netip.Prefix) (ips []netip.Prefix) {
	chosen, _ := facts.InternalIPs(c.InternalIP, last)
	for _, i := range chosen {
		ips = append(ips, i.Address)
	}
	return ips
}

// deviceMTU returns the configured MTU, or what fits through the links to other nodes.
func (c Config) deviceMTU(facts netcfg.Facts) int {
	if c.MTU != 0 {
		return c.MTU
	}
	_, v6 := c.Cluster.Families()
	return netcfg.MTU(facts.MTU, v6)
}
