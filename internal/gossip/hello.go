// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// hello is the first message of each side of a stream. It is encrypted with a key that is
// derived from the secret alone. The cluster's name is in the message and not in the key,
// so that nodes of two clusters with one secret can report the mistake.
type hello struct {
	id       mesh.ID
	instance uint64
	port     uint16 // of the sender's gossip socket
	boot     uint64 // of the sender's packets
	counter  uint64 // of the last packet that it sent
	random   [32]byte
	echo     [32]byte // the dialer's random, in the acceptor's hello
	cluster  mesh.Cluster
	carries  bool // in the dialer's hello: the stream carries datagrams, see Carrier
	looks    bool // in the dialer's hello: it only looks, see Look
	aes      bool // the sender's processor has instructions for AES, see streamCipher
}

type wireHello struct {
	ID       []byte       `cbor:"1,keyasint"`
	Instance uint64       `cbor:"2,keyasint"`
	Port     uint16       `cbor:"3,keyasint"`
	Random   []byte       `cbor:"4,keyasint"`
	Echo     []byte       `cbor:"5,keyasint"`
	Cluster  wireSettings `cbor:"7,keyasint"`
	Boot     uint64       `cbor:"8,keyasint"`
	Counter  uint64       `cbor:"9,keyasint"`
	Carries  bool         `cbor:"10,keyasint,omitempty"`
	AES      bool         `cbor:"11,keyasint,omitempty"`
	Looks    bool         `cbor:"12,keyasint,omitempty"`
}

type wireSettings struct {
	Name          string         `cbor:"1,keyasint"`
	Generation    uint64         `cbor:"2,keyasint"`
	Trust         string         `cbor:"3,keyasint"`
	Mode          string         `cbor:"4,keyasint"`
	Encapsulation string         `cbor:"5,keyasint"`
	Gateways      int64          `cbor:"6,keyasint"`
	Overlay       []netip.Prefix `cbor:"7,keyasint"`
	Pods          []netip.Prefix `cbor:"8,keyasint"`
	PodPrefix     []int64        `cbor:"9,keyasint"`
	Services      []netip.Prefix `cbor:"10,keyasint"`
	DNSAddress    netip.Addr     `cbor:"11,keyasint"`
	DNSDomain     string         `cbor:"12,keyasint"`
}

func (h hello) marshal() ([]byte, error) {
	c := h.cluster
	w := wireHello{
		ID: h.id[:], Instance: h.instance, Port: h.port, Boot: h.boot, Counter: h.counter,
		Random: h.random[:], Echo: h.echo[:], Carries: h.carries, AES: h.aes, Looks: h.looks,
		Cluster: wireSettings{
			Name: c.Name, Generation: c.Generation, Trust: string(c.Trust),
			Mode: string(c.Mode), Encapsulation: string(c.Encapsulation), Gateways: int64(c.Gateways),
			Overlay: c.Overlay, Pods: c.Pods, Services: c.Services,
			DNSAddress: c.DNS.Address, DNSDomain: c.DNS.Domain,
		},
	}
	for _, n := range c.PodPrefix {
		w.Cluster.PodPrefix = append(w.Cluster.PodPrefix, int64(n))
	}
	b, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode hello: %w", err)
	}
	if len(b)+sealOverhead > maxHello {
		return nil, fmt.Errorf("encode hello: %d bytes of cluster settings are too many", len(b))
	}
	return b, nil
}

func parseHello(b []byte) (hello, error) {
	var w wireHello
	if err := decoding.Unmarshal(b, &w); err != nil {
		return hello{}, fmt.Errorf("decode hello: %w", err)
	}
	if len(w.ID) != len(mesh.ID{}) || len(w.Random) != 32 || len(w.Echo) != 32 {
		return hello{}, errors.New("decode hello: a field has the wrong size")
	}
	s := w.Cluster
	c := mesh.Cluster{
		Name: s.Name, Generation: s.Generation, Trust: mesh.Trust(s.Trust),
		Mode: mesh.Mode(s.Mode), Encapsulation: mesh.Encapsulation(s.Encapsulation), Gateways: int(s.Gateways),
		Overlay: s.Overlay, Pods: s.Pods, Services: s.Services,
		DNS: mesh.DNS{Address: s.DNSAddress, Domain: s.DNSDomain},
	}
	for _, n := range s.PodPrefix {
		c.PodPrefix = append(c.PodPrefix, int(n))
	}
	if err := checkCluster(c); err != nil {
		return hello{}, fmt.Errorf("decode hello: %w", err)
	}
	return hello{
		id: mesh.ID(w.ID), instance: w.Instance, port: w.Port, boot: w.Boot, counter: w.Counter,
		random: [32]byte(w.Random), echo: [32]byte(w.Echo), cluster: c, carries: w.Carries, aes: w.AES, looks: w.Looks,
	}, nil
}

// checkCluster checks the settings in a hello, of any cluster, because they are shown
// where they differ from ours.
func checkCluster(c mesh.Cluster) error {
	for _, ps := range [][]netip.Prefix{c.Overlay, c.Pods, c.Services} {
		if len(ps) > mesh.MaxCIDRs || slices.ContainsFunc(ps, func(p netip.Prefix) bool { return !p.IsValid() }) {
			return fmt.Errorf("check cluster: %d ranges, of which each must be one and at most %d may be", len(ps), mesh.MaxCIDRs)
		}
	}
	for _, word := range []string{string(c.Trust), string(c.Mode), string(c.Encapsulation)} {
		if !mesh.ValidText(word, maxWord) {
			return fmt.Errorf("check cluster: setting %q", word)
		}
	}
	switch {
	case len(c.Name) > mesh.MaxName || !mesh.ValidHostName(c.Name):
		return fmt.Errorf("check cluster: name %q", c.Name)
	case len(c.PodPrefix) > mesh.MaxCIDRs:
		return fmt.Errorf("check cluster: %d lengths of pod CIDRs", len(c.PodPrefix))
	case c.DNS.Domain != "" && !mesh.ValidHostName(c.DNS.Domain):
		return fmt.Errorf("check cluster: domain %q", c.DNS.Domain)
	case c.DNS.Address.Zone() != "":
		return fmt.Errorf("check cluster: resolver %q", c.DNS.Address.String())
	}
	return nil
}

// labelOf hashes the settings without which nodes can't talk to each other at all.
func labelOf(c mesh.Cluster) label {
	b := binary.BigEndian.AppendUint64([]byte("meshd label v1\x00"), c.Hash())
	sum := sha256.Sum256(append(b, c.Name...))
	return label(sum[:])
}

// difference is a cluster setting that differs between two nodes.
type difference struct {
	text  string
	fatal bool // the nodes can't be in one mesh
}

// differences compares our settings with those of the node at a place, except for those
// that one of the two will adopt from the other.
func differences(here, there mesh.Cluster, place string) []difference {
	var all []difference
	compare := func(key string, a, b any, fatal bool) {
		if x, y := fmt.Sprint(a), fmt.Sprint(b); x != y {
			all = append(all, difference{fmt.Sprintf("%s is %s here, %s on %s", key, x, y, place), fatal})
		}
	}
	if here.Name != there.Name {
		return []difference{{fmt.Sprintf("cluster %q here, %q on %s", here.Name, there.Name, place), true}}
	}
	compare("cluster.overlay", here.Overlay, there.Overlay, true)
	compare("cluster.pods", here.Pods, there.Pods, true)
	compare("cluster.pod-prefix", here.PodPrefix, there.PodPrefix, true)
	compare("cluster.services", here.Services, there.Services, false)
	compare("cluster.dns", here.DNS, there.DNS, false)
	compare("cluster.trust", here.Trust, there.Trust, false)
	return all
}

func isFatal(all []difference) bool {
	return slices.ContainsFunc(all, func(d difference) bool { return d.fatal })
}
