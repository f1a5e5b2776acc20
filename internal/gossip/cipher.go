// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"runtime"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// streamCipher returns the cipher of a stream, and what tells its keys from those of the other
// cipher: AES-256-GCM if both processors have instructions for it, with which it takes a fraction
// of the time. Without them it would be slow and its timing would tell of the key, so the cipher is
// ChaCha20-Poly1305. Their keys, nonces and tags have the same length.
//
// Keys are not renewed. A stream may carry more than the 2^24.5 frames to which RFC 8446, section
// 5.5, limits AES-GCM with one key. What grows with the data is the chance that ciphertext can be
// told from random bytes. It is 2^-27 after a year at 10 Gbit/s, and most of the plaintext is
// ciphertext of WireGuard itself.
func streamCipher(dialer, acceptor hello) (info string, cipherOf func(key []byte) (cipher.AEAD, error)) {
	if dialer.aes && acceptor.aes {
		return infoAES, newGCM
	}
	return "", chacha20poly1305.New
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// hasAES reports whether this processor has the instructions with which Go computes AES-GCM, see
// hasAESGCMHardwareSupport in crypto/tls.
func hasAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAES && cpu.S390X.HasAESCTR && cpu.S390X.HasGHASH
	}
	return false
}
