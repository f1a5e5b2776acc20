// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// NetworkName is the name of the network in our conflist, by which it is recognised.
const NetworkName = "meshd"

// cniVersion is the highest version that Debian's containernetworking-plugins 1.1.1
// support.
const cniVersion = "1.0.0"

// Config is the desired container network of the host.
type Config struct {
	ConfDir      string         // where containerd looks for conflists
	BinDir       string         // where containerd looks for plugins
	PluginSource string         // where the distribution has its plugins
	Bridge       string         // name of the pods' bridge
	PodCIDRs     []netip.Prefix // one per family; the first family is the pods' primary one
	MTU          int            // of the bridge and the pods, bytes: the WireGuard device's
}

// The conflist, as in the CNI specification 1.0.0, section 1. Each plugin's keys
// are in its manual at https://www.cni.dev/plugins/current/.
type (
	conflist struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    [2]any `json:"plugins"`
	}

	bridgePlugin struct {
		Type             string `json:"type"`
		Bridge           string `json:"bridge"`
		IsDefaultGateway bool   `json:"isDefaultGateway"`
		ForceAddress     bool   `json:"forceAddress"`
		HairpinMode      bool   `json:"hairpinMode"`
		MTU              int    `json:"mtu"`
		IPAM             ipam   `json:"ipam"`
	}

	ipam struct {
		Type   string       `json:"type"`
		Ranges [][]ipamPool `json:"ranges"`
	}

	ipamPool struct {
		Subnet netip.Prefix `json:"subnet"`
	}

	portmapPlugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		SNAT         bool            `json:"snat"`
	}
)

// Render returns the conflist for c: indented JSON with a newline at the end, always the
// same bytes for the same c.
//
// It does not set ipMasq. meshd's own nft table masquerades the packets that leave the
// mesh. The plugin does not know the mesh's ranges, and would masquerade packets between
// pods of different nodes, too.
func Render(c Config) ([]byte, error) {
	ranges, err := ranges(c.PodCIDRs)
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	list := conflist{CNIVersion: cniVersion, Name: NetworkName, Plugins: [2]any{
		bridgePlugin{
			Type:   "bridge",
			Bridge: c.Bridge,
			// The bridge gets the first address of each range, and is the pods' default
			// gateway.
			IsDefaultGateway: true,
			// After a renumbering the bridge still has its old address. Without this
			// setting the plugin makes no pods until the bridge is deleted.
			ForceAddress: true,
			// A pod may reach itself through its own Service.
			HairpinMode: true,
			MTU:         c.MTU,
			IPAM:        ipam{Type: "host-local", Ranges: ranges},
		},
		portmapPlugin{
			Type:         "portmap",
			Capabilities: map[string]bool{"portMappings": true},
			// Masquerade what this node's own pods and processes send to a host port,
			// because replies would bypass the translation otherwise. Packets of other
			// sources keep their source address.
			SNAT: true,
		},
	}}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	return append(data, '\n'), nil
}

// ranges returns a set with one range for each prefix: host-local assigns a pod one address
// from each set.
func ranges(cidrs []netip.Prefix) ([][]ipamPool, error) {
	if len(cidrs) == 0 {
		return nil, errors.New("no pod CIDR")
	}
	var sets [][]ipamPool
	families := map[bool]netip.Prefix{}
	for _, p := range cidrs {
		if !p.IsValid() || p != p.Masked() {
			return nil, fmt.Errorf("pod CIDR %s: not a network", p)
		}
		// A pod can have neither the network's own address, nor the gateway's, nor the last.
		if p.Bits() > p.Addr().BitLen()-2 {
			return nil, fmt.Errorf("pod CIDR %s: no room for a pod", p)
		}
		if other, ok := families[p.Addr().Is4()]; ok {
			return nil, fmt.Errorf("pod CIDRs %s and %s: want one per family", other, p)
		}
		families[p.Addr().Is4()] = p
		sets = append(sets, []ipamPool{{Subnet: p}})
	}
	return sets, nil
}

// networkName returns the network's name in a conflist.
func networkName(conflist []byte) (string, error) {
	var list struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return "", fmt.Errorf("parse conflist: %w", err)
	}
	return list.Name, nil
}
