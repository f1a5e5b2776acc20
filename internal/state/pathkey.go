// SPDX-License-Identifier: Apache-2.0

package state

import (
	"crypto/ecdh"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
)

// PathKeyFile is the name of the path key's file in the run directory.
const PathKeyFile = "path.json"

// counterBlock is how many counters a start reserves. It is more than a daemon can use: at a
// million a second they last half a year, so nothing is written while it runs. A million
// starts fit into 64 bits; then there is a new key.
const counterBlock = 1 << 44

// PathKey is the X25519 key with which a node seals its probes, and the counters that go
// into their nonces. No counter is used twice with one key, also after a crash.
type PathKey struct {
	Private *ecdh.PrivateKey
	last    atomic.Uint64
}

// Counter returns the next counter. The first one is above 0.
func (k *PathKey) Counter() uint64 { return k.last.Add(1) }

// OpenPathKey returns the path key in the run directory at path, which is emptied at each
// boot but not when the daemon restarts. Its peers still know the key then, so that probes
// work at once. There is a new key, made from random, if there is no file or it can't be
// read: peers answer again when they have heard of it.
//
// If the file can't be written, OpenPathKey returns the error together with a new key, which
// is lost when the daemon ends. The key is nil only if random has an error.
//
// The caller must make sure that no other daemon uses the directory.
func OpenPathKey(path string, random io.Reader) (*PathKey, error) {
	file := filepath.Join(path, PathKeyFile)
	private, used, err := readPathKey(file)
	if err == nil && used <= math.MaxUint64-counterBlock && writePathKey(file, private, used+counterBlock) == nil {
		k := &PathKey{Private: private}
		k.last.Store(used)
		return k, nil
	}
	// Without a reservation, the counters of a key in the file would be used again after the
	// next start.
	private, err = newPathKey(random)
	if err != nil {
		return nil, err
	}
	return &PathKey{Private: private}, writePathKey(file, private, counterBlock)
}

func newPathKey(random io.Reader) (*ecdh.PrivateKey, error) {
	var seed [32]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return nil, fmt.Errorf("make path key: read random bytes: %w", err)
	}
	key, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		return nil, fmt.Errorf("make path key: %w", err)
	}
	return key, nil
}

// pathKeyFile is the content of path.json.
type pathKeyFile struct {
	Version    int    `json:"version"`
	PrivateKey []byte `json:"private-key"`
	Reserved   uint64 `json:"reserved"` // no counter above it was used
}

func readPathKey(file string) (private *ecdh.PrivateKey, reserved uint64, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, err
	}
	return decodePathKey(data)
}

func decodePathKey(data []byte) (private *ecdh.PrivateKey, reserved uint64, err error) {
	var f pathKeyFile
	if err := decodeJSON(data, &f); err != nil {
		return nil, 0, err
	}
	if private, err = ecdh.X25519().NewPrivateKey(f.PrivateKey); err != nil {
		return nil, 0, fmt.Errorf("%w: private-key: %w", ErrDamaged, err)
	}
	if f.Reserved == 0 {
		return nil, 0, fmt.Errorf("%w: reserved is missing", ErrDamaged)
	}
	return private, f.Reserved, nil
}

func encodePathKey(private *ecdh.PrivateKey, reserved uint64) ([]byte, error) {
	return encodeJSON(pathKeyFile{Version: version, PrivateKey: private.Bytes(), Reserved: reserved})
}

// writePathKey replaces the file, and removes what killed processes have left of it.
func writePathKey(file string, private *ecdh.PrivateKey, reserved uint64) error {
	data, err := encodePathKey(private, reserved)
	if err == nil {
		err = replaceFile(file, data)
	}
	if err != nil {
		return fmt.Errorf("keep path key: %w", err)
	}
	return nil
}
