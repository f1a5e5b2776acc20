// SPDX-License-Identifier: Apache-2.0

package state

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// Identity holds the private keys of a node.
type Identity struct {
	Key       ed25519.PrivateKey // signs the node's objects
	WireGuard wgtypes.Key        // private key of the WireGuard device
}

// ID returns the identity's fingerprint.
func (i Identity) ID() mesh.ID {
	return mesh.IDOf(i.Key.Public().(ed25519.PublicKey))
}

// String returns the fingerprint, so that printing an identity never shows its keys.
func (i Identity) String() string { return i.ID().String() }

// Origin is where an identity comes from.
type Origin string

// The origins.
const (
	Loaded Origin = "loaded" // from its file
	Made   Origin = "made"   // new, on the first start
	Cloned Origin = "cloned" // new, because the one in the file belongs to another machine
)

// machineIDFile holds the ID of this installation of the system, see machine-id(5).
const machineIDFile = "/etc/machine-id"

// MachineID returns the ID of this installation of the system. It is never empty.
func MachineID() (string, error) { return readMachineID(machineIDFile) }

func readMachineID(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read machine ID: %w; run: systemd-machine-id-setup", err)
	}
	switch id := strings.TrimSpace(string(data)); id {
	case "":
		return "", fmt.Errorf("read machine ID: %s is empty; run: systemd-machine-id-setup", path)
	case "uninitialized": // images have this until their first boot: it is the same on all copies
		return "", fmt.Errorf("read machine ID: %s says %s; run: systemd-machine-id-setup", path, id)
	default:
		return id, nil
	}
}

// Identity returns the node's identity, and makes one from random if there is none.
// machineID is the result of MachineID.
//
// An identity is bound to its machine. If the machine-id differs, the disk is a copy of
// another node's, and two nodes with one identity would conflict in everything. So
// Identity renames the copied identity and node state to *.cloned-<start of its
// fingerprint>, and makes a new identity.
//
// A file that can't be read is an error, which wraps ErrDamaged or ErrNewer if its content
// is the cause: only a person may decide that this becomes another node.
func (d *Dir) Identity(machineID string, random io.Reader) (Identity, Origin, error) {
	machine := machineHash(machineID)
	data, err := os.ReadFile(d.file(IdentityFile))
	if errors.Is(err, os.ErrNotExist) {
		id, err := d.makeIdentity(machine, random)
		return id, Made, err
	}
	if err != nil {
		return Identity{}, "", fmt.Errorf("read identity: %w", err)
	}
	id, boundTo, err := d.parseIdentity(data)
	if err != nil {
		return Identity{}, "", err
	}
	if boundTo == machine {
		return id, Loaded, nil
	}
	if err := d.setCloneAside(id.ID()); err != nil {
		return Identity{}, "", err
	}
	id, err = d.makeIdentity(machine, random)
	return id, Cloned, err
}

// parseIdentity calls decodeIdentity and adds advice to its errors.
func (d *Dir) parseIdentity(data []byte) (Identity, string, error) {
	id, boundTo, err := decodeIdentity(data)
	if err != nil {
		return Identity{}, "", fmt.Errorf("read identity %s: %w; %s", d.file(IdentityFile), err, advice(err, "the node makes itself a new identity"))
	}
	return id, boundTo, nil
}

// setCloneAside renames the files of a copied identity. The identity comes last: if this
// is interrupted, the next start detects the clone again.
func (d *Dir) setCloneAside(id mesh.ID) error {
	reason := "cloned-" + id.String()[:8]
	for _, name := range []string{NodeFile, IdentityFile} {
		if _, err := d.setAside(name, reason); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *Dir) makeIdentity(machine string, random io.Reader) (Identity, error) {
	id, err := newIdentity(random)
	if err != nil {
		return Identity{}, fmt.Errorf("make identity: %w", err)
	}
	data, err := encodeIdentity(id, machine)
	if err != nil {
		return Identity{}, fmt.Errorf("make identity: %w", err)
	}
	if err := atomicfile.Write(d.file(IdentityFile), data, fileMode); err != nil {
		return Identity{}, fmt.Errorf("make identity: %w", err)
	}
	return id, nil
}

// newIdentity reads the key material itself, because the GenerateKey functions of the
// standard library and of wgtypes use their own random source.
func newIdentity(random io.Reader) (Identity, error) {
	var seed [ed25519.SeedSize]byte
	var key wgtypes.Key
	for _, b := range [][]byte{seed[:], key[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return Identity{}, fmt.Errorf("read random bytes: %w", err)
		}
	}
	// Clamp the key (RFC 7748, section 5). The kernel would do it, too, and then the desired
	// key would never equal the observed one.
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return Identity{Key: ed25519.NewKeyFromSeed(seed[:]), WireGuard: key}, nil
}

// machineHash returns the hash that represents the machine-id in the identity file.
// machine-id(5) requires to keep the ID confidential and to hash it with an
// application-specific key.
func machineHash(machineID string) string {
	sum := sha256.Sum256([]byte("meshd machine-id v1\x00" + machineID))
	return hex.EncodeToString(sum[:])
}

// identityFile is the content of identity.json. It also has the public half of each key,
// for people to read and to detect a damaged private half.
type identityFile struct {
	Version     int     `json:"version"`
	Machine     string  `json:"machine"`
	Fingerprint mesh.ID `json:"fingerprint"`
	Seed        []byte  `json:"ed25519-seed"`
	PublicKey   []byte  `json:"wireguard-public-key"`
	PrivateKey  []byte  `json:"wireguard-private-key"`
}

func encodeIdentity(id Identity, machine string) ([]byte, error) {
	public := id.WireGuard.PublicKey()
	return encodeJSON(identityFile{
		Version:     version,
		Machine:     machine,
		Fingerprint: id.ID(),
		Seed:        id.Key.Seed(),
		PublicKey:   public[:],
		PrivateKey:  id.WireGuard[:],
	})
}

// decodeIdentity returns an identity and the hash of the machine that it is bound to. Its
// errors never contain keys.
func decodeIdentity(data []byte) (Identity, string, error) {
	var f identityFile
	if err := decodeJSON(data, &f); err != nil {
		return Identity{}, "", err
	}
	if len(f.Seed) != ed25519.SeedSize {
		return Identity{}, "", fmt.Errorf("%w: ed25519-seed has %d bytes, not %d", ErrDamaged, len(f.Seed), ed25519.SeedSize)
	}
	key, err := wgtypes.NewKey(f.PrivateKey)
	if err != nil {
		return Identity{}, "", fmt.Errorf("%w: wireguard-private-key: %w", ErrDamaged, err)
	}
	id := Identity{Key: ed25519.NewKeyFromSeed(f.Seed), WireGuard: key}
	if id.ID() != f.Fingerprint {
		return Identity{}, "", fmt.Errorf("%w: ed25519-seed does not belong to fingerprint", ErrDamaged)
	}
	if public := key.PublicKey(); string(public[:]) != string(f.PublicKey) {
		return Identity{}, "", fmt.Errorf("%w: wireguard-private-key does not belong to wireguard-public-key", ErrDamaged)
	}
	if len(f.Machine) != 2*sha256.Size {
		return Identity{}, "", fmt.Errorf("%w: machine is not a hash", ErrDamaged)
	}
	return id, f.Machine, nil
}
