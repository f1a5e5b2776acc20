// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// clientSequence is the sequence of every client, because a client is never changed, only
// removed.
const clientSequence = 1

// clientBody is a client as the content of an object.
type clientBody struct{ mesh.Client }

type wireClient struct {
	Identity       []byte   `cbor:"1,keyasint"`
	Added          int64    `cbor:"2,keyasint"`
	Name           string   `cbor:"3,keyasint"`
	Key            []byte   `cbor:"4,keyasint"`
	PresharedKey   []byte   `cbor:"5,keyasint,omitempty"`
	Index          int64    `cbor:"6,keyasint"`
	Access         []string `cbor:"7,keyasint"`
	ServiceGateway []byte   `cbor:"8,keyasint,omitempty"`

	Networks []netip.Prefix `cbor:"9,keyasint,omitempty"`
	Offers   []string       `cbor:"10,keyasint,omitempty"`
	Endpoint *wireEndpoint  `cbor:"11,keyasint,omitempty"`
	Cluster  string         `cbor:"12,keyasint,omitempty"`

	// A node that does not know it ignores it.
	NoInternalIPs bool `cbor:"13,keyasint,omitempty"`
}

func (b clientBody) author() ed25519.PublicKey { return b.Author }
func (b clientBody) subject() mesh.ID          { return b.ID }
func (b clientBody) sequence() uint64          { return clientSequence }

// covered: a client stays when the record of the node that added it is forgotten, but not
// when that node is revoked.
func (b clientBody) covered(forgotten map[mesh.ID]uint64) bool {
	return forgotten[b.ID] >= clientSequence || forgotten[mesh.IDOf(b.Author)] == mesh.Forever
}

func encodeClient(c mesh.Client) ([]byte, error) {
	w := wireClient{
		Identity: c.Author, Added: c.Added, Name: c.Name, Key: c.Key[:], Index: int64(c.Index),
		Access: mesh.AccessStrings(c.Access), Networks: c.Networks, Offers: mesh.AccessStrings(c.Offers), Cluster: c.Cluster, NoInternalIPs: c.NoInternalIPs,
	}
	if c.PresharedKey != (mesh.PresharedKey{}) {
		w.PresharedKey = c.PresharedKey[:]
	}
	if c.ServiceGateway != (mesh.ID{}) {
		w.ServiceGateway = c.ServiceGateway[:]
	}
	if c.Endpoint.Host != "" {
		e := toWire(c.Endpoint)
		w.Endpoint = &e
	}
	payload, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode client: %w", err)
	}
	return payload, nil
}

// decodeClient decodes a client. Its ID is a hash of the payload, so that no two clients
// have the same one.
func decodeClient(payload []byte) (body, error) {
	var w wireClient
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode client: %w", err)
	}
	sum := sha256.Sum256(payload)
	c := mesh.Client{ID: mesh.ID(sum[:len(mesh.ID{})]), Author: w.Identity, Name: w.Name, Index: int(w.Index), Added: w.Added, NoInternalIPs: w.NoInternalIPs}
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode client: an identity of %d bytes", len(w.Identity))
	case mesh.CheckName(w.Name) != nil:
		return nil, fmt.Errorf("decode client: name: %w", mesh.CheckName(w.Name))
	case len(w.Key) != wgtypes.KeyLen || wgtypes.Key(w.Key) == wgtypes.Key{}:
		return nil, errors.New("decode client: no WireGuard key")
	case len(w.PresharedKey) != 0 && len(w.PresharedKey) != wgtypes.KeyLen:
		return nil, fmt.Errorf("decode client: a preshared key of %d bytes", len(w.PresharedKey))
	case len(w.ServiceGateway) != 0 && len(w.ServiceGateway) != len(mesh.ID{}):
		return nil, fmt.Errorf("decode client: a fingerprint of %d bytes", len(w.ServiceGateway))
	case w.Index < 0 || w.Index >= mesh.MaxSlots || w.Added <= 0:
		return nil, fmt.Errorf("decode client: address %d, added at %d", w.Index, w.Added)
	case len(w.Access) == 0 || len(w.Access) > mesh.MaxAccess:
		return nil, fmt.Errorf("decode client: %d access rules, it may have 1 to %d", len(w.Access), mesh.MaxAccess)
	}
	c.Key = wgtypes.Key(w.Key)
	if len(w.PresharedKey) > 0 {
		c.PresharedKey = mesh.PresharedKey(w.PresharedKey)
	}
	if len(w.ServiceGateway) > 0 {
		c.ServiceGateway = mesh.ID(w.ServiceGateway)
	}
	var err error
	if c.Access, err = mesh.ParseAccessList(w.Access); err != nil {
		return nil, fmt.Errorf("decode client: %w", err)
	}
	if err := w.decodeNetworks(&c); err != nil {
		return nil, fmt.Errorf("decode client: %w", err)
	}
	return clientBody{c}, nil
}

// decodeNetworks decodes what a router has more than other clients.
func (w wireClient) decodeNetworks(c *mesh.Client) (err error) {
	if len(w.Networks) > mesh.MaxClientNetworks || len(w.Offers) > mesh.MaxAccess {
		return fmt.Errorf("%d networks behind it, and it offers %d; at most %d and %d", len(w.Networks), len(w.Offers), mesh.MaxClientNetworks, mesh.MaxAccess)
	}
	if err := checkNetworks(w.Networks); err != nil {
		return fmt.Errorf("network behind it: %w", err)
	}
	if w.Cluster != "" && (len(w.Networks) == 0 || mesh.CheckName(w.Cluster) != nil) {
		return fmt.Errorf("%d networks of cluster %q", len(w.Networks), w.Cluster)
	}
	c.Networks, c.Cluster = w.Networks, w.Cluster
	if c.Offers, err = mesh.ParseAccessList(w.Offers); err != nil {
		return err
	}
	if e := w.Endpoint; e != nil {
		c.Endpoint = e.endpoint()
		return checkEndpoint(c.Endpoint)
	}
	return nil
}

// AddClient signs a client and distributes it. It fills in the author and the ID.
func (g *Gossip) AddClient(c mesh.Client) (mesh.Client, error) {
	c.Author = g.identity.Public().(ed25519.PublicKey)
	payload, err := encodeClient(c)
	if err != nil {
		return mesh.Client{}, fmt.Errorf("add client %s: %w", c.Name, err)
	}
	o, err := g.sign(kindClient, payload)
	if err != nil {
		return mesh.Client{}, fmt.Errorf("add client %s: %w", c.Name, err)
	}
	result, err := g.storeOwn(o)
	if err == nil && result != fresh {
		err = ErrStale
	}
	if err != nil {
		return mesh.Client{}, fmt.Errorf("add client %s: %w", c.Name, err)
	}
	g.signal()
	g.spread([]object{o})
	return o.body.(clientBody).Client, nil
}

// RemoveClient removes a client for ever on all nodes. A client that is added again
// later, even with the same key, is another client.
func (g *Gossip) RemoveClient(id mesh.ID) error { return g.Forget(id, clientSequence) }

// clients returns all clients, by ID.
func (s *store) clients() []mesh.Client {
	var all []mesh.Client
	for _, o := range s.nonRecords {
		if b, ok := o.body.(clientBody); ok {
			c := b.Client
			c.Author, c.Access, c.Networks, c.Offers = slices.Clone(c.Author), slices.Clone(c.Access), slices.Clone(c.Networks), slices.Clone(c.Offers)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b mesh.Client) int { return a.ID.Compare(b.ID) })
	return all
}
